"""Records of datasets in Detectron2's form, from files in COCO's forms or label images."""

import json
from collections.abc import Mapping
from pathlib import Path

from detectron2.data.datasets import load_coco_json

from aff_seg.errors import UserError

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


def load_instances(json_file: str, image_root: str, things: IdMap) -> Records:
    """Read a dataset in COCO's instance form.

    Args:
        json_file: annotations; their polygons of less than three points are left out.
        image_root: folder of the images.
        things: category id of the file to class of the model.

    Returns:
        a record for each image, also for one without objects: ``file_name``, ``image_id``,
        ``height``, ``width``, ``annotations``.

    Raises:
        UserError: an annotation has a category that ``things`` lacks.
    """
    records = load_coco_json(json_file, image_root)
    for record in records:
        for annotation in record["annotations"]:
            annotation["category_id"] = _class_of(annotation["category_id"], things, json_file)
    return records


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
    names = {image["id"]: image["file_name"] for image in content["images"]}
    records = []
    for annotation in content["annotations"]:
        image_id = annotation["image_id"]
        if image_id not in names:
            raise UserError(
                f"{json_file} annotates image {image_id!r}, which is not among its images; make "
                "or fetch the file again."
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
                for segment in annotation["segments_info"]
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
