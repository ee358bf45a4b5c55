"""Panoptic results in COCO's form: a PNG for each image, and a JSON file."""

import json
import os

import numpy as np
from detectron2.data import Metadata
from panopticapi.utils import id2rgb
from PIL import Image

from aff_seg.atomic_file import atomic_open
from aff_seg.data.loaders import entries, read_json
from aff_seg.data.metadata import class_name
from aff_seg.errors import UserError
from aff_seg.prediction.segmentation import Segmentation

JSON_NAME = "panoptic.json"


class CocoPanopticWriter:
    """Collects results that COCO's panoptic evaluation can read.

    Categories have the ids of the dataset. Images have the ids of the dataset's annotation file
    where that is there and lists them, by their path below its folder of images or by their name
    alone; else those that COCO, ADE20K and Cityscapes give: the name of the file without suffix,
    for Cityscapes without ``_leftImg8bit``, a number where it is one.

    Args:
        folder: gets a PNG for each image and ``panoptic.json``, whose ``annotations`` name them.
        metadata: of the dataset.

    Raises:
        UserError: the dataset's annotation file is damaged.
    """

    def __init__(self, folder: str, metadata: Metadata):
        self._folder = folder
        self._metadata = metadata
        self._images: dict[str | int, dict] = {}
        self._annotations: list[dict] = []
        self._id_of = {
            index: category_id
            for group in ("thing", "stuff")
            for category_id, index in metadata.get(
                f"{group}_dataset_id_to_contiguous_id", {}
            ).items()
        }
        self._image_ids = _known_image_ids(metadata)

    def add(self, path: str, name: str, segmentation: Segmentation) -> None:
        """Write the PNG of an image.

        Args:
            path: of the image.
            name: of the PNG, without suffix.
            segmentation: with a panoptic map.

        Raises:
            UserError: another image has the same id.
            OSError: the PNG cannot be written.
        """
        if segmentation.segments is None:
            raise ValueError("the segmentation has no panoptic map")
        image_id = self._image_id(path)
        if image_id in self._images:
            raise UserError(
                f"{path} is not in {JSON_NAME}, where another image has its id {image_id}; write "
                "it to another folder."
            )
        with atomic_open(os.path.join(self._folder, f"{name}.png")) as file:
            Image.fromarray(id2rgb(segmentation.panoptic)).save(file, format="PNG")
        numbers = [segment["id"] for segment in segmentation.segments]
        areas = np.bincount(segmentation.panoptic.ravel(), minlength=1 + max(numbers, default=0))
        height, width = segmentation.size
        self._images[image_id] = {
            "id": image_id,
            "file_name": os.path.basename(path),
            "height": height,
            "width": width,
        }
        self._annotations.append(
            {
                "image_id": image_id,
                "file_name": f"{name}.png",
                "segments_info": [
                    {
                        "id": segment["id"],
                        "category_id": self._dataset_id(segment["category_id"]),
                        "area": int(areas[segment["id"]]),
                        "iscrowd": 0,
                    }
                    for segment in segmentation.segments
                    if areas[segment["id"]]
                ],
            }
        )

    def finish(self) -> None:
        """Write the JSON file of the images so far.

        Raises:
            OSError: it cannot be written.
        """
        used = {s["category_id"] for a in self._annotations for s in a["segments_info"]}
        known = set(self._metadata.get("thing_dataset_id_to_contiguous_id", {}))
        index_of = {category_id: index for index, category_id in self._id_of.items()}
        categories = []
        for category_id in sorted(used | set(index_of)):
            index, is_thing = index_of.get(category_id, category_id), category_id in known
            name = class_name(self._metadata, index, is_thing)
            categories.append({"id": category_id, "name": name, "isthing": int(is_thing)})
        content = {
            "images": list(self._images.values()),
            "annotations": self._annotations,
            "categories": categories,
        }
        with atomic_open(os.path.join(self._folder, JSON_NAME)) as file:
            file.write(json.dumps(content).encode())

    def _dataset_id(self, category_id: int) -> int:
        return self._id_of.get(category_id, category_id)

    def _image_id(self, path: str) -> str | int:
        below = os.path.relpath(path, self._metadata.get("image_root", "."))
        name = os.path.basename(path)
        for known in (below, name):
            if known in self._image_ids:
                return self._image_ids[known]
        stem = os.path.splitext(name)[0].removesuffix("_leftImg8bit")
        return int(stem) if stem.isdecimal() else stem


def _known_image_ids(metadata: Metadata) -> dict[str, str | int]:
    """Ids of a dataset's images by ``file_name``, as far as its annotation file is there."""
    path = metadata.get("panoptic_json", "")
    if not os.path.isfile(path):
        return {}
    images = entries(read_json(path, "images"), "images", path, "id", "file_name")
    return {image["file_name"]: image["id"] for image in images}
