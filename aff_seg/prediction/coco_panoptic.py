"""Panoptic results in COCO's form: a PNG for each image, and a JSON file."""

import json
import os

import numpy as np
from detectron2.data import Metadata
from panopticapi.utils import id2rgb
from PIL import Image

from aff_seg.data.metadata import class_attribute
from aff_seg.engine.checkpoint_file import atomic_open
from aff_seg.errors import UserError
from aff_seg.prediction.segmentation import Segmentation

JSON_NAME = "panoptic.json"


class CocoPanopticWriter:
    """Collects results that COCO's panoptic evaluation can read.

    Categories have the ids of the dataset. Images have the ids that the three datasets give
    them: the name of the file without suffix, for Cityscapes without ``_leftImg8bit``, a number
    where it is one.

    Args:
        folder: gets a PNG for each image and ``panoptic.json``, whose ``annotations`` name them.
        metadata: of the dataset.
    """

    def __init__(self, folder: str, metadata: Metadata):
        self._folder = folder
        self._metadata = metadata
        self._images: list[dict] = []
        self._annotations: list[dict] = []
        self._id_of = {
            index: category_id
            for group in ("thing", "stuff")
            for category_id, index in metadata.get(
                f"{group}_dataset_id_to_contiguous_id", {}
            ).items()
        }

    def add(self, path: str, name: str, segmentation: Segmentation) -> None:
        """Write the PNG of an image.

        Args:
            path: of the image.
            name: of the PNG, without suffix.
            segmentation: with a panoptic map.

        Raises:
            UserError: there is no panoptic map.
        """
        if segmentation.segments is None:
            raise UserError(
                "The model gives no panoptic result to write in COCO's form; set "
                "MODEL.MASK_FORMER.TEST.PANOPTIC_ON True."
            )
        image_id = _image_id(path)
        with atomic_open(os.path.join(self._folder, f"{name}.png")) as file:
            Image.fromarray(id2rgb(segmentation.panoptic)).save(file, format="PNG")
        areas = np.bincount(segmentation.panoptic.ravel())
        height, width = segmentation.size
        self._images.append(
            {"id": image_id, "file_name": os.path.basename(path), "height": height, "width": width}
        )
        self._annotations.append(
            {
                "image_id": image_id,
                "file_name": f"{name}.png",
                "segments_info": [
                    {
                        "id": segment["id"],
                        "category_id": self._dataset_id(segment["category_id"]),
                        "area": int(areas[segment["id"]]) if segment["id"] < len(areas) else 0,
                        "iscrowd": 0,
                    }
                    for segment in segmentation.segments
                ],
            }
        )

    def finish(self) -> None:
        """Write the JSON file of the images so far."""
        used = {s["category_id"] for a in self._annotations for s in a["segments_info"]}
        known = set(self._metadata.get("thing_dataset_id_to_contiguous_id", {}))
        index_of = {category_id: index for index, category_id in self._id_of.items()}
        categories = []
        for category_id in sorted(used | set(index_of)):
            index, is_thing = index_of.get(category_id, category_id), category_id in known
            name = class_attribute(self._metadata, "classes", index, is_thing)
            categories.append(
                {"id": category_id, "name": name or f"class {index}", "isthing": int(is_thing)}
            )
        content = {
            "images": self._images,
            "annotations": self._annotations,
            "categories": categories,
        }
        with atomic_open(os.path.join(self._folder, JSON_NAME)) as file:
            file.write(json.dumps(content).encode())

    def _dataset_id(self, category_id: int) -> int:
        return self._id_of.get(category_id, category_id)


def _image_id(path: str) -> str | int:
    stem = os.path.splitext(os.path.basename(path))[0].removesuffix("_leftImg8bit")
    return int(stem) if stem.isdecimal() else stem
