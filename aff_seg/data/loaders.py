"""Records of datasets in Detectron2's form, from files in COCO's forms or label images."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from aff_seg.errors import UserError

logger = logging.getLogger(__name__)

# Image files, by the end of their names.
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}

Records = list[dict]
IdMap = Mapping[int, int]


def read_json(path: str, *keys: str) -> dict:
    """Read an annotation file that must hold ``keys``.

    Raises:
        UserError: the file is missing, no JSON, or lacks a key.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); correct its path.") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); make or fetch it again.") from error
    absent = [key for key in keys if not isinstance(content, dict) or key not in content]
    if absent:
        raise UserError(f"{path} has no {absent[0]!r}; an annotation file in COCO's form needs it.")
    return content


def entries(content: Mapping, part: str, where: Any, *keys: str) -> list[dict]:
    """The list ``content[part]``, each entry of which has ``keys``.

    Args:
        content: of an annotation file.
        part: key of the list.
        where: the file, for messages.
        keys: needed.

    Raises:
        UserError: it is no list, or an entry lacks a key.
    """
    found = content[part]
    if not isinstance(found, list):
        raise UserError(f"{where}: {part!r} is no list; an annotation file in COCO's form has one.")
    for entry in found:
        missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if missing:
            raise UserError(
                f"{where} has an entry of {part!r} without {missing[0]!r}; an annotation file in "
                "COCO's form needs it."
            )
    return found


def load_instances(
    json_file: str, image_root: str, things: IdMap, *, boxes_alone: bool = False
) -> Records:
    """Read a dataset in COCO's instance form.

    Args:
        json_file: annotations; those of images that it does not list are left out, and so are
            polygons of less than three points, and objects that have no others.
        image_root: folder of the images.
        things: category id of the file to class of the model.
        boxes_alone: whether objects that have a box need no mask.

    Returns:
        a record for each image, also for one without objects: ``file_name``, ``image_id``,
        ``height``, ``width``, ``annotations``.

    Raises:
        UserError: the file is no such file, or an annotation has no mask, one of another size
            than its image, or a category that ``things`` lacks.
    """
    content = read_json(json_file, "images", "annotations")
    records: dict[int | str, dict] = {}
    for image in entries(content, "images", json_file, "id", "file_name", "height", "width"):
        if image["id"] in records:
            raise UserError(f"{json_file} lists image {image['id']} twice; remove one.")
        records[image["id"]] = {
            "file_name": str(Path(image_root) / image["file_name"]),
            "image_id": image["id"],
            "height": image["height"],
            "width": image["width"],
            "annotations": [],
        }
    left_out, seen = 0, set()
    for entry in entries(content, "annotations", json_file, "id", "image_id", "category_id"):
        where = f"{json_file}: annotation {entry['id']}"
        if entry["id"] in seen:
            raise UserError(f"{where} is there twice; give each an id of its own.")
        seen.add(entry["id"])
        if entry.get("ignore"):
            raise UserError(f"{where} is to be ignored, which is not supported; remove it.")
        if entry["image_id"] not in records:
            continue
        record = records[entry["image_id"]]
        annotation = {
            "category_id": _class_of(entry["category_id"], things, json_file),
            "iscrowd": entry.get("iscrowd", 0),
        }
        if entry.get("segmentation") or not (boxes_alone and entry.get("bbox")):
            size = [record["height"], record["width"]]
            annotation["segmentation"] = _segmentation(entry, size, where)
            if not annotation["segmentation"]:
                left_out += 1
                continue
        if entry.get("bbox"):
            annotation |= {"bbox": entry["bbox"], "bbox_mode": BoxMode.XYWH_ABS}
        record["annotations"].append(annotation)
    if left_out:
        logger.warning(
            "%s: %d objects have no polygon of three points and are left out.", json_file, left_out
        )
    return list(records.values())


def _segmentation(annotation: dict, size: list[int], where: str) -> dict | list:
    """The mask of an annotation: RLE, or its polygons that have three points or more."""
    found = annotation.get("segmentation")
    if isinstance(found, dict):
        if found.get("size") != size or "counts" not in found:
            raise UserError(
                f"{where} has a mask of the size {found.get('size')}, but its image is {size} "
                "(height, width); correct it."
            )
        counts = found["counts"]
        if isinstance(counts, list) and sum(counts) != size[0] * size[1]:
            raise UserError(
                f"{where} has RLE of other than {size[0] * size[1]} pixels; correct it."
            )
        return found
    if not isinstance(found, list) or not found:
        raise UserError(f"{where} has no segmentation; give it polygons or RLE, or remove it.")
    if not all(isinstance(polygon, list) for polygon in found):
        raise UserError(
            f"{where} has a segmentation that is no list of polygons [x, y, x, y, ...]; correct it."
        )
    return whole_polygons(found)


def whole_polygons(polygons: list[list]) -> list[list]:
    """The polygons [x, y, x, y, ...] that have three points or more."""
    return [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]


def load_panoptic(
    json_file: str,
    image_root: str,
    panoptic_root: str,
    *,
    things: IdMap,
    classes: IdMap,
    sem_seg_root: str | None = None,
) -> Records:
    """Read a dataset in COCO's panoptic form.

    Args:
        json_file: annotations.
        image_root: folder of the images.
        panoptic_root: folder of the panoptic PNG files.
        things: category id of the file to class of the model, of the things.
        classes: the same of things and stuff.
        sem_seg_root: folder of label images with the names of the panoptic ones, if there is one.

    Returns:
        a record for each image: ``file_name``, ``image_id``, ``pan_seg_file_name``,
        ``segments_info`` with classes of the model and ``isthing``, and ``sem_seg_file_name``
        where there are label images.

    Raises:
        UserError: the file is no such file, or it has an unknown image or category.
    """
    content = read_json(json_file, "images", "annotations")
    images = entries(content, "images", json_file, "id", "file_name")
    names = {image["id"]: image["file_name"] for image in images}
    needed = ("image_id", "file_name", "segments_info")
    records = []
    for annotation in entries(content, "annotations", json_file, *needed):
        image_id = annotation["image_id"]
        if image_id not in names:
            raise UserError(
                f"{json_file} annotates image {image_id!r}, which is not among its images; make "
                "or fetch the file again."
            )
        segments = entries(annotation, "segments_info", json_file, "id", "category_id")
        if len({segment["id"] for segment in segments}) < len(segments):
            raise UserError(
                f"{json_file} lists a segment of {annotation['file_name']} twice; give each an id "
                "of its own."
            )
        record = {
            "file_name": str(Path(image_root) / names[image_id]),
            "image_id": image_id,
            "pan_seg_file_name": str(Path(panoptic_root) / annotation["file_name"]),
            "segments_info": [
                {
                    **segment,
                    "category_id": _class_of(segment["category_id"], classes, json_file),
                    "isthing": segment["category_id"] in things,
                }
                for segment in segments
            ],
        }
        if sem_seg_root is not None:
            record["sem_seg_file_name"] = str(Path(sem_seg_root) / annotation["file_name"])
        records.append(record)
    return records


def load_semantic(image_root: str, label_root: str) -> Records:
    """Pair the images below a folder with the label images of the same names below another.

    Returns:
        a record for each image: ``file_name``, ``sem_seg_file_name``.

    Raises:
        UserError: an image has no label image, or there are no images.
    """
    images, labels = list_images(image_root), list_images(label_root)
    for name in images:
        if name not in labels:
            raise UserError(
                f"{images[name]} has no label image {Path(label_root) / name}.png; add it, or "
                "remove the image."
            )
    return [{"file_name": images[name], "sem_seg_file_name": labels[name]} for name in images]


def list_images(folder: str) -> dict[str, str]:
    """Paths of the images below a folder, by their paths from there without the suffix.

    Raises:
        UserError: there are none, or two of one name.
    """
    paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise UserError(f"{folder} is missing or holds no images; correct its path.")
    images: dict[str, str] = {}
    for path in paths:
        name = str(path.relative_to(folder).with_suffix(""))
        if name in images:
            raise UserError(f"{images[name]} and {path} have one name; remove or rename one.")
        images[name] = str(path)
    return images


def _class_of(category_id: int, classes: IdMap, json_file: str) -> int:
    if category_id not in classes:
        raise UserError(
            f"{json_file} has an annotation of category_id {category_id}, which is not among the "
            "categories of the dataset; correct the annotation or the categories."
        )
    return classes[category_id]
