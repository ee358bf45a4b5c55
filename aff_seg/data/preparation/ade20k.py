"""ADE20K: labels that count from zero, a listing of instances, and panoptic images.

Sources of a job are label images of ``annotations``, of ``annotations_instance``, or of both.
"""

import contextlib
import zlib
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from panopticapi.utils import IdGenerator, id2rgb
from pycocotools import mask as mask_util

from aff_seg.data.ade20k import THINGS, instance_categories, panoptic_categories
from aff_seg.data.preparation.files import (
    check_picture,
    list_files,
    read_colours,
    read_labels,
    require_size,
    write_png,
)
from aff_seg.data.preparation.listing import Listing, Record
from aff_seg.data.preparation.segments import (
    category_map,
    distinct,
    measure,
    read_segment_ids,
    segment_faults,
)
from aff_seg.data.preparation.steps import Dataset, Job, Step
from aff_seg.errors import UserError

_FOLDER_OF = {"train": "training", "val": "validation"}
_IGNORED = 255
_CATEGORIES = range(150)
_STUFF = tuple(i for i in _CATEGORIES if i not in THINGS)


def _steps(
    folder: Path, split: str, tasks: Collection[str], published: bool
) -> list[Callable[[], Step]]:
    makers = {"semantic": _semantic_step, "instance": _instance_step, "panoptic": _panoptic_step}
    chosen = [maker for task, maker in makers.items() if task in tasks]
    first = [_picture_step] if published else []
    return [partial(maker, folder, split) for maker in first + chosen]


def _picture_step(folder: Path, split: str) -> Step:
    return Step(
        title=f"ADE20K {split} pictures",
        jobs=[Job(name=path.stem, picture=path) for path in _pictures(folder, split)],
        check=_check_picture,
    )


def _semantic_step(folder: Path, split: str) -> Step:
    pictures = _pictures(folder, split)
    labels = _folder(folder, "annotations", split)
    made = folder / "annotations_detectron2" / _FOLDER_OF[split]
    return Step(
        title=f"ADE20K {split} semantic",
        jobs=_jobs(pictures, (labels,), made),
        make=_make_semantic,
        check=_check_semantic,
        check_whole=partial(_strays, pictures, (labels, made)),
    )


def _instance_step(folder: Path, split: str) -> Step:
    pictures = _pictures(folder, split)
    instances = _folder(folder, "annotations_instance", split)
    path = folder / f"ade20k_instance_{split}.json"
    return Step(
        title=f"ADE20K {split} instance",
        jobs=_jobs(pictures, (instances,)),
        make=_make_instances,
        listing=Listing(path, instance_categories(), numbered=True),
        check=partial(_check_instances, path),
        check_whole=partial(_strays, pictures, (instances,)),
    )


def _panoptic_step(folder: Path, split: str) -> Step:
    pictures = _pictures(folder, split)
    labels = _folder(folder, "annotations", split)
    instances = _folder(folder, "annotations_instance", split)
    made = folder / f"ade20k_panoptic_{split}"
    path = folder / f"ade20k_panoptic_{split}.json"
    return Step(
        title=f"ADE20K {split} panoptic",
        jobs=_jobs(pictures, (labels, instances), made),
        make=_make_panoptic,
        listing=Listing(path, panoptic_categories(), numbered=False),
        check=partial(_check_panoptic, path),
        check_whole=partial(_strays, pictures, (labels, instances, made)),
    )


def _folder(folder: Path, kind: str, split: str) -> Path:
    path = folder / kind / _FOLDER_OF[split]
    if not path.is_dir():
        raise UserError(f"{path} is missing; unpack ADE20K as datasets/README.md shows.")
    return path


def _pictures(folder: Path, split: str) -> list[Path]:
    path = _folder(folder, "images", split)
    files = list_files(path, "*.jpg")
    if not files:
        raise UserError(f"{path} holds no pictures; unpack ADE20K as datasets/README.md shows.")
    return files


def _jobs(pictures: list[Path], sources: tuple[Path, ...], made: Path | None = None) -> list[Job]:
    return [
        Job(
            name=picture.stem,
            picture=picture,
            sources=tuple(folder / f"{picture.stem}.png" for folder in sources),
            outputs=(made / f"{picture.stem}.png",) if made else (),
        )
        for picture in pictures
    ]


def _strays(pictures: list[Path], folders: tuple[Path, ...]) -> list[str]:
    names = {picture.stem for picture in pictures}
    return [
        f"{path} has no picture {path.stem}.jpg."
        for folder in folders
        for path in list_files(folder, "*.png")
        if path.stem not in names
    ]


def _check_picture(job: Job, record: Record | None) -> list[str]:
    check_picture(job.picture)
    return []


# Semantic


def _read_classes(path: Path, picture: Path) -> np.ndarray:
    """uint8 (H, W): 1 to 150, or 0 where there is no class."""
    classes = read_labels(path)
    require_size(path, classes.shape, picture)
    if classes.max() > 150:
        raise UserError(f"{path} has the label {classes.max()}; labels of ADE20K are 0 to 150.")
    return classes


def _make_semantic(job: Job) -> None:
    # 0, no class, wraps around to 255, which is ignored.
    write_png(job.outputs[0], _read_classes(job.sources[0], job.picture) - np.uint8(1))


def _check_semantic(job: Job, record: Record | None) -> list[str]:
    expected = _read_classes(job.sources[0], job.picture) - np.uint8(1)
    made = job.outputs[0]
    labels = read_labels(made)
    require_size(made, labels.shape, job.picture)
    wrong = labels[(labels > 149) & (labels != _IGNORED)]
    if wrong.size:
        return [f"{made} has the label {wrong.max()}; labels are 0 to 149, or 255."]
    if (labels != expected).any():
        return [f"{made} differs from {job.sources[0]} less one."]
    return []


# Instances


def _read_instances(path: Path, picture: Path) -> tuple[np.ndarray, dict[int, int]]:
    """Number the things of ``annotations_instance``.

    Returns:
        ids (H, W), 0 where there is no thing, and the class, 0 to 149, of each.
    """
    colours = read_colours(path).astype(np.int32)
    require_size(path, colours.shape, picture)
    category, number = colours[..., 0], colours[..., 1]
    wrong = category[(number > 0) & ((category < 1) | (category > len(THINGS)))]
    if wrong.size:
        raise UserError(
            f"{path} gives a thing the class {wrong.max()} (red); classes of things are 1 to "
            f"{len(THINGS)}."
        )
    ids = np.where(number > 0, 256 * number + category, 0)
    return ids, {i: THINGS[i % 256 - 1] for i in distinct(ids)[0].tolist() if i > 0}


def _image(job: Job, shape: tuple[int, ...]) -> dict:
    height, width = shape[:2]
    return {"id": job.name, "file_name": job.picture.name, "height": height, "width": width}


def _make_instances(job: Job) -> Record:
    ids, classes = _read_instances(job.sources[0], job.picture)
    annotations = []
    for number, measures in measure(ids).items():
        rle = mask_util.encode(np.asfortranarray(ids == number, dtype=np.uint8))
        segmentation = {
            "size": [int(side) for side in rle["size"]],
            "counts": rle["counts"].decode(),
        }
        annotations.append(
            {"image_id": job.name, "category_id": classes[number], "iscrowd": 0, **measures}
            | {"segmentation": segmentation}
        )
    return {"image": _image(job, ids.shape), "annotations": annotations}


def _check_instances(listing: Path, job: Job, record: Record | None) -> list[str]:
    expected = _make_instances(job)
    if record is None:
        return []
    faults = _image_faults(listing, expected["image"], record["image"])
    size = [expected["image"]["height"], expected["image"]["width"]]
    for annotation in record["annotations"]:
        if annotation.get("category_id") not in THINGS:
            faults.append(
                f"{listing} gives a thing of image {job.name} the category "
                f"{annotation.get('category_id')}, which is none of the things."
            )
        rle = annotation.get("segmentation")
        if not isinstance(rle, dict) or rle.get("size") != size:
            faults.append(f"{listing} has a mask of image {job.name} in another size than it.")
    if not faults and _sorted(record["annotations"]) != _sorted(expected["annotations"]):
        faults.append(f"{listing} has other things in image {job.name} than {job.sources[0]}.")
    return faults


def _image_faults(listing: Path, expected: dict, found: dict) -> list[str]:
    return [
        f"{listing} gives image {expected['id']} the {key} {found.get(key)}, not {value}."
        for key, value in expected.items()
        if found.get(key) != value
    ]


def _sorted(annotations: list[dict]) -> list[tuple]:
    keys = ("category_id", "iscrowd", "area", "bbox")
    return sorted(
        (*(a.get(key) for key in keys), a["segmentation"].get("counts")) for a in annotations
    )


# Panoptic


def _make_panoptic(job: Job) -> Record:
    ids, record = _panoptic(job)
    write_png(job.outputs[0], id2rgb(ids))
    return record


def _panoptic(job: Job) -> tuple[np.ndarray, Record]:
    """Stuff of the label image, and the things of the instance image over it.

    Area and box of stuff are those before things came over it, as in the published recipe.

    Returns:
        segment ids (H, W), and the record.
    """
    classes = _read_classes(job.sources[0], job.picture)
    things, class_of = _read_instances(job.sources[1], job.picture)
    ids = np.zeros(classes.shape, dtype=np.int32)
    segments = []
    with _seeded(job.name):
        generator = IdGenerator({c["id"]: c for c in panoptic_categories()})
        # 0 is no segment.
        generator.taken_colors.add((0, 0, 0))
        for number, measures in measure(classes).items():
            if number - 1 in _STUFF:
                segment_id = generator.get_id(number - 1)
                ids[classes == number] = segment_id
                segments.append({"id": segment_id, "category_id": number - 1, **measures})
        for number, measures in measure(things).items():
            segment_id = generator.get_id(class_of[number])
            ids[things == number] = segment_id
            segments.append({"id": segment_id, "category_id": class_of[number], **measures})
    annotation = {
        "image_id": job.name,
        "file_name": f"{job.name}.png",
        "segments_info": [{**segment, "iscrowd": 0} for segment in segments],
    }
    return ids, {"image": _image(job, ids.shape), "annotations": [annotation]}


@contextlib.contextmanager
def _seeded(name: str) -> Iterator[None]:
    """The same random colours for an image in each run; panopticapi draws them from numpy."""
    state = np.random.get_state()
    np.random.seed(zlib.crc32(name.encode()))
    try:
        yield
    finally:
        np.random.set_state(state)


def _check_panoptic(listing: Path, job: Job, record: Record | None) -> list[str]:
    expected_ids, expected = _panoptic(job)
    made = job.outputs[0]
    ids = read_segment_ids(made, job.picture)
    if record is None:
        return []
    annotation, wanted = record["annotations"][0], expected["annotations"][0]
    faults = _image_faults(listing, expected["image"], record["image"])
    if annotation.get("file_name") != made.name:
        faults.append(f"{listing} names {annotation.get('file_name')} in place of {made.name}.")
    shown = set(measure(ids))
    faults += segment_faults(listing, made, annotation, shown, _CATEGORIES, may_be_hidden=_STUFF)
    if not faults:
        # Other programs number the segments otherwise.
        if not _same_measures(annotation, wanted):
            faults.append(f"{listing} has other segments in image {job.name} than its labels.")
        if (category_map(ids, annotation) != category_map(expected_ids, wanted)).any():
            faults.append(f"{made} shows other classes than {job.sources[0]} and its instances.")
    return faults


def _same_measures(annotation: dict, other: dict) -> bool:
    keys = ("category_id", "area", "bbox", "iscrowd")
    first, second = (
        sorted([segment.get(key) for key in keys] for segment in a["segments_info"])
        for a in (annotation, other)
    )
    return first == second


ADE20K = Dataset(
    folder="ADEChallengeData2016",
    published={"train": 20_210, "val": 2_000},
    made=("annotations_detectron2/*", "ade20k_*"),
    steps=_steps,
)
