"""Scenes as the COCO 2017 dataset lies on disk, instances and panoptic."""

import json
from pathlib import Path

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image

from aff_seg.data.preparation.coco import COCO
from aff_seg.data.shapes.coco_categories import panoptic_categories, thing_categories
from aff_seg.data.shapes.outlines import mask_to_polygons
from aff_seg.data.shapes.scene import Scene, Segment

_CATEGORY_OF = {category["name"]: category for category in COCO_CATEGORIES}
_FIRST_IMAGE_ID = {"train": 1, "val": 1_000_001}
_MAX_ANNOTATIONS_PER_IMAGE = 1000


class CocoWriter:
    """Writes pictures, panoptic PNGs and the four JSON files under ``folder``."""

    dataset = COCO

    def __init__(self, folder: Path):
        self.folder = folder
        self._images: dict[str, list[dict]] = {"train": [], "val": []}
        self._instances: dict[str, list[dict]] = {"train": [], "val": []}
        self._panoptic: dict[str, list[dict]] = {"train": [], "val": []}

    def add(self, scene: Scene, split: str, index: int) -> None:
        """Write one scene; ``index`` counts from 0 within ``split`` (train or val)."""
        image_id = _FIRST_IMAGE_ID[split] + index
        height, width = scene.labels.shape
        pictures = self.folder / f"{split}2017"
        labels = self.folder / f"panoptic_{split}2017"
        pictures.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        file_name = f"{image_id:012d}.jpg"
        Image.fromarray(scene.image).save(pictures / file_name, quality=95, subsampling=0)
        self._images[split].append(
            {"id": image_id, "file_name": file_name, "height": height, "width": width}
        )
        ids, infos = self._segments(scene, split, image_id)
        label_name = f"{image_id:012d}.png"
        Image.fromarray(id2rgb(ids)).save(labels / label_name, compress_level=1)
        self._panoptic[split].append(
            {"image_id": image_id, "file_name": label_name, "segments_info": infos}
        )

    def _segments(self, scene: Scene, split: str, image_id: int) -> tuple[np.ndarray, list[dict]]:
        """Number the segments of a scene, and note its things as instances too."""
        ids = np.zeros(scene.labels.shape, dtype=np.uint32)
        infos: list[dict] = []
        for segment in scene.segments():
            if segment.kind.coco is None:
                continue
            category = _CATEGORY_OF[segment.kind.coco]
            segment_id = _free_id(category["color"], {info["id"] for info in infos})
            ids[segment.mask] = segment_id
            entry = {"category_id": category["id"], **_measures(segment)}
            infos.append({"id": segment_id, **entry})
            if segment.kind.is_thing:
                annotation_id = image_id * _MAX_ANNOTATIONS_PER_IMAGE + len(infos)
                self._instances[split].append(
                    {"id": annotation_id, "image_id": image_id, **entry}
                    | {"segmentation": _segmentation(segment)}
                )
        return ids, infos

    def finish(self, split: str) -> None:
        """Write the JSON files of a split."""
        folder = self.folder / "annotations"
        folder.mkdir(exist_ok=True)
        for name, annotations, categories in (
            ("instances", self._instances[split], thing_categories()),
            ("panoptic", self._panoptic[split], panoptic_categories()),
        ):
            content = {
                "info": {"description": "shapes in the layout of COCO 2017"},
                "licenses": [],
                "images": self._images[split],
                "annotations": annotations,
                "categories": categories,
            }
            (folder / f"{name}_{split}2017.json").write_text(json.dumps(content))


def _free_id(colour: list[int], taken: set[int]) -> int:
    """The segment id whose colour in the PNG is ``colour``, or the next that is free."""
    segment_id = rgb2id(colour)
    while segment_id in taken or segment_id == 0:
        segment_id += 1
    return segment_id


def _measures(segment: Segment) -> dict:
    rows = np.flatnonzero(segment.mask.any(axis=1))
    columns = np.flatnonzero(segment.mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    return {
        "iscrowd": int(segment.crowd),
        "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
        "area": int(segment.mask.sum()),
    }


def _segmentation(segment: Segment) -> list[list[int]] | dict:
    """Polygons of a single thing, or the uncompressed RLE of a crowd."""
    if not segment.crowd:
        return mask_to_polygons(segment.mask)
    return _uncompressed_rle(segment.mask)


def _uncompressed_rle(mask: np.ndarray) -> dict:
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    counts = np.diff(changes, prepend=0, append=flat.size)
    return {"counts": counts.tolist(), "size": list(mask.shape)}
