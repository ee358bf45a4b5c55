"""COCO 2017: a class for each pixel, from the panoptic images, for semantic segmentation.

There are two countings of classes: every category, by which this project evaluates; and the stuff
alone, with one class for all things, on which Detectron2 trains Panoptic FPN and semantic FPN.
Instances and panoptic segments are used as they are published, and only checked here.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from aff_seg.data.loaders import whole_polygons
from aff_seg.data.preparation.files import (
    check_picture,
    list_files,
    picture_size,
    read_labels,
    require_size,
    write_png,
)
from aff_seg.data.preparation.listing import Listing, Record
from aff_seg.data.preparation.segments import (
    distinct,
    measure,
    read_segment_ids,
    segment_faults,
)
from aff_seg.data.preparation.steps import Dataset, Job, Step
from aff_seg.errors import UserError

_IGNORED = 255
_CATEGORIES = [category["id"] for category in COCO_CATEGORIES]
_CLASS_OF = {category: index for index, category in enumerate(_CATEGORIES)}
_STUFF = [category["id"] for category in COCO_CATEGORIES if not category["isthing"]]
_STUFF_CLASS_OF = {category: 0 for category in _CATEGORIES} | {
    category: index for index, category in enumerate(_STUFF, start=1)
}
# Folder of the label images of a split, the classes of categories, and their number.
_COUNTINGS = (
    ("panoptic_semseg_{}2017", _CLASS_OF, len(_CATEGORIES)),
    ("panoptic_stuff_{}2017", _STUFF_CLASS_OF, len(_STUFF) + 1),
)
_THINGS = [category for category in COCO_CATEGORIES if category["isthing"]]


def _steps(
    folder: Path, split: str, tasks: Collection[str], published: bool
) -> list[Callable[[], Step]]:
    makers = []
    if published and "instance" in tasks:
        makers.append(_instance_step)
    if published and ("panoptic" in tasks or "semantic" in tasks):
        makers.append(_panoptic_step)
    if "semantic" in tasks:
        makers.append(_semantic_step)
    return [partial(maker, folder, split) for maker in makers]


def _folder(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_dir():
        raise UserError(f"{path} is missing; unpack COCO as datasets/README.md shows.")
    return path


def _strays(listing: Path, names: set[str], folder: Path, pattern: str) -> list[str]:
    return [
        f"{path} is not listed in {listing}."
        for path in list_files(folder, pattern)
        if path.name not in names
    ]


def _check_picture(listing: Path, job: Job, record: Record | None) -> list[str]:
    check_picture(job.picture)
    image = job.record["image"]
    height, width = picture_size(job.picture)
    if (image.get("height"), image.get("width")) != (height, width):
        return [
            f"{job.picture} is {width} x {height} pixels, but {listing} says "
            f"{image.get('width')} x {image.get('height')}."
        ]
    return []


# Instances


def _instance_step(folder: Path, split: str) -> Step:
    pictures = _folder(folder, f"{split}2017")
    path = folder / "annotations" / f"instances_{split}2017.json"
    listing = Listing(path, _THINGS, numbered=True)
    content = listing.read()
    jobs = [
        Job(image["id"], pictures / image["file_name"], record={"image": image, "annotations": []})
        for image in content["images"]
    ]
    return Step(
        title=f"COCO {split} instance",
        jobs=jobs,
        check=partial(_check_picture, path),
        check_whole=partial(_instance_faults, listing, content, pictures),
    )


def _instance_faults(listing: Listing, content: dict, pictures: Path) -> list[str]:
    images = {image["id"]: image for image in content["images"]}
    things = {category["id"] for category in _THINGS}
    faults = listing.faults(content)
    faults += _strays(listing.path, {i["file_name"] for i in images.values()}, pictures, "*.jpg")
    for annotation in content["annotations"]:
        where = f"{listing.path}: annotation {annotation.get('id')}"
        if annotation.get("category_id") not in things:
            faults.append(f"{where} has the category {annotation.get('category_id')}, no thing's.")
        image = images.get(annotation["image_id"], {})
        told = _segmentation_fault(annotation.get("segmentation"), image)
        if told:
            faults.append(f"{where} {told}.")
    return faults


def _segmentation_fault(segmentation: list | dict | None, image: dict) -> str | None:
    if isinstance(segmentation, dict):
        size = [image.get("height"), image.get("width")]
        if image and segmentation.get("size") != size:
            return f"has a mask of size {segmentation.get('size')}, but its image is {size}"
    elif not isinstance(segmentation, list) or not segmentation:
        return "has no mask"
    elif not all(isinstance(polygon, list) for polygon in segmentation):
        return "has a mask that is no list of polygons"
    elif not whole_polygons(segmentation):
        return "has no polygon of three points"
    return None


# Panoptic


def _panoptic_step(folder: Path, split: str) -> Step:
    listing, content = _read_panoptic(folder, split)
    pictures, labels = _folder(folder, f"{split}2017"), _folder(folder, f"panoptic_{split}2017")
    return Step(
        title=f"COCO {split} panoptic",
        jobs=_jobs(listing, content, pictures, labels),
        check=partial(_check_panoptic, listing.path),
        check_whole=partial(_panoptic_faults, listing, content, pictures, labels),
    )


def _read_panoptic(folder: Path, split: str) -> tuple[Listing, dict]:
    path = folder / "annotations" / f"panoptic_{split}2017.json"
    listing = Listing(path, COCO_CATEGORIES, numbered=False)
    return listing, listing.read()


def _jobs(
    listing: Listing, content: dict, pictures: Path, labels: Path, made: Sequence[Path] = ()
) -> list[Job]:
    """One job for each image with one annotation; :func:`_panoptic_faults` tells of others."""
    jobs = []
    for record in listing.records(content).values():
        if len(record["annotations"]) == 1:
            name = record["annotations"][0]["file_name"]
            jobs.append(
                Job(
                    name=record["image"]["id"],
                    picture=pictures / record["image"]["file_name"],
                    sources=(labels / name,),
                    outputs=tuple(folder / name for folder in made),
                    record=record,
                )
            )
    return jobs


def _panoptic_faults(listing: Listing, content: dict, pictures: Path, labels: Path) -> list[str]:
    counts = Counter(annotation["image_id"] for annotation in content["annotations"])
    return [
        *listing.faults(content),
        *(
            f"{listing.path} has no annotation of image {image['id']}."
            for image in content["images"]
            if not counts[image["id"]]
        ),
        *_strays(listing.path, {i["file_name"] for i in content["images"]}, pictures, "*.jpg"),
        *_strays(listing.path, {a["file_name"] for a in content["annotations"]}, labels, "*.png"),
    ]


def _check_panoptic(listing: Path, job: Job, record: Record | None) -> list[str]:
    faults = _check_picture(listing, job, record)
    annotation = job.record["annotations"][0]
    shown = measure(read_segment_ids(job.sources[0], job.picture))
    return faults + segment_faults(listing, job.sources[0], annotation, shown, _CATEGORIES)


# Semantic


def _semantic_step(folder: Path, split: str) -> Step:
    listing, content = _read_panoptic(folder, split)
    pictures, labels = _folder(folder, f"{split}2017"), _folder(folder, f"panoptic_{split}2017")
    made = [folder / name.format(split) for name, _, _ in _COUNTINGS]
    jobs = _jobs(listing, content, pictures, labels, made)
    names = {job.outputs[0].name for job in jobs}
    return Step(
        title=f"COCO {split} semantic",
        jobs=jobs,
        make=partial(_make_semantic, listing.path),
        check=partial(_check_semantic, listing.path),
        check_whole=partial(_all_strays, listing.path, names, made),
    )


def _all_strays(listing: Path, names: set[str], folders: Sequence[Path]) -> list[str]:
    return [fault for folder in folders for fault in _strays(listing, names, folder, "*.png")]


def _classes(listing: Path, job: Job) -> list[np.ndarray]:
    """uint8 (H, W) for each counting: class of the category, or 255 where there is none."""
    annotation = job.record["annotations"][0]
    path = job.sources[0]
    values, places = distinct(read_segment_ids(path, job.picture))
    shown = set(values.tolist()) - {0}
    # A segment that is nowhere to be seen does no harm here.
    faults = segment_faults(listing, path, annotation, shown, _CATEGORIES, _CATEGORIES)
    if faults:
        raise UserError(faults[0])
    category_of = {s["id"]: s["category_id"] for s in annotation["segments_info"]}
    maps = []
    for _, class_of, _ in _COUNTINGS:
        table = [class_of.get(category_of.get(value), _IGNORED) for value in values.tolist()]
        maps.append(np.array(table, dtype=np.uint8)[places])
    return maps


def _make_semantic(listing: Path, job: Job) -> None:
    for path, classes in zip(job.outputs, _classes(listing, job), strict=True):
        write_png(path, classes)


def _check_semantic(listing: Path, job: Job, record: Record | None) -> list[str]:
    faults = []
    expected = _classes(listing, job)
    for made, classes, (_, _, count) in zip(job.outputs, expected, _COUNTINGS, strict=True):
        labels = read_labels(made)
        require_size(made, labels.shape, job.picture)
        wrong = labels[(labels >= count) & (labels != _IGNORED)]
        if wrong.size:
            faults.append(
                f"{made} has the label {wrong.max()}; labels are 0 to {count - 1}, or 255."
            )
        elif (labels != classes).any():
            faults.append(f"{made} shows other classes than {job.sources[0]}.")
    return faults


COCO = Dataset(
    folder="coco",
    published={"train": 118_287, "val": 5_000},
    made=("panoptic_semseg_*", "panoptic_stuff_*"),
    steps=_steps,
)
