"""Cityscapes: labels as they are trained, and panoptic images.

Both are what cityscapesscripts makes, here in several processes and without half-written files.
Instances are used as they are published, and only checked here.
"""

import json
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import numpy as np
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.helpers.labels import id2label, labels, name2label
from cityscapesscripts.preparation.json2labelImg import createLabelImage
from panopticapi.utils import id2rgb

from aff_seg.data.preparation.files import (
    check_picture,
    list_files,
    read_image,
    read_json,
    read_labels,
    require_size,
    write_png,
)
from aff_seg.data.preparation.listing import Listing, Record
from aff_seg.data.preparation.segments import distinct, measure, read_segment_ids, segment_faults
from aff_seg.data.preparation.steps import Dataset, Job, Step
from aff_seg.errors import UserError

_PICTURE = "_leftImg8bit.png"
_CATEGORIES = {label.id for label in labels if not label.ignoreInEval}
_TRAIN_IDS = {*(label.trainId for label in labels if not label.ignoreInEval), 255}
# Polygons are filled a little otherwise by other versions of Pillow.
_LARGEST_DIFFERENCE = 0.02


def _steps(
    folder: Path, split: str, tasks: Collection[str], published: bool
) -> list[Callable[[], Step]]:
    makers = [_published_step] if published else []
    # Panoptic training reads the labels of semantic training too.
    if "semantic" in tasks or "panoptic" in tasks:
        makers.append(_semantic_step)
    if "panoptic" in tasks:
        makers.append(_panoptic_step)
    return [partial(maker, folder, split) for maker in makers]


def _published_step(folder: Path, split: str) -> Step:
    sources = ("polygons.json", "labelIds.png", "instanceIds.png")
    return Step(
        title=f"Cityscapes {split} as published",
        jobs=_jobs(folder, split, sources),
        check=_check_published,
        check_whole=partial(_strays, folder, split),
    )


def _semantic_step(folder: Path, split: str) -> Step:
    return Step(
        title=f"Cityscapes {split} semantic",
        jobs=_jobs(folder, split, ("polygons.json",), "labelTrainIds.png"),
        make=_make_semantic,
        check=_check_semantic,
    )


def _panoptic_step(folder: Path, split: str) -> Step:
    name = f"cityscapes_panoptic_{split}"
    listing = Listing(folder / "gtFine" / f"{name}.json", _panoptic_categories(), numbered=False)
    jobs = []
    for job in _jobs(folder, split, ("instanceIds.png",)):
        made = folder / "gtFine" / name / f"{job.name}_gtFine_panoptic.png"
        jobs.append(Job(job.name, job.picture, job.sources, (made,)))
    return Step(
        title=f"Cityscapes {split} panoptic",
        jobs=jobs,
        make=_make_panoptic,
        listing=listing,
        check=partial(_check_panoptic, listing.path),
        check_whole=partial(_panoptic_strays, {job.outputs[0] for job in jobs}),
    )


def _panoptic_strays(known: set[Path]) -> list[str]:
    folder = next(iter(known)).parent
    return [f"{path} has no picture." for path in list_files(folder, "*.png") if path not in known]


def _pictures(folder: Path, split: str) -> list[Path]:
    path = folder / "leftImg8bit" / split
    remedy = "unpack Cityscapes as datasets/README.md shows"
    for part in (path, folder / "gtFine" / split):
        if not part.is_dir():
            raise UserError(f"{part} is missing; {remedy}.")
    files = list_files(path, f"*/*{_PICTURE}")
    if not files:
        raise UserError(f"{path} holds no pictures; {remedy}.")
    return files


def _jobs(
    folder: Path, split: str, sources: tuple[str, ...], output: str | None = None
) -> list[Job]:
    """One job for each picture; ``sources`` and ``output`` are ends of file names."""
    jobs = []
    for picture in _pictures(folder, split):
        name = picture.name.removesuffix(_PICTURE)
        beginning = folder / "gtFine" / split / picture.parent.name / f"{name}_gtFine_"
        jobs.append(
            Job(
                name=name,
                picture=picture,
                sources=tuple(Path(f"{beginning}{source}") for source in sources),
                outputs=(Path(f"{beginning}{output}"),) if output else (),
            )
        )
    return jobs


def _strays(folder: Path, split: str) -> list[str]:
    known = set(_pictures(folder, split))
    faults = [
        f"{path} is not named like a picture (*{_PICTURE}); move it elsewhere."
        for path in list_files(folder / "leftImg8bit" / split, "*/*")
        if path not in known
    ]
    names = {(path.parent.name, path.name.removesuffix(_PICTURE)) for path in known}
    for path in list_files(folder / "gtFine" / split, "*/*_gtFine_*"):
        if (path.parent.name, path.name.rpartition("_gtFine_")[0]) not in names:
            faults.append(f"{path} has no picture.")
    return faults


def _panoptic_categories() -> list[dict]:
    return [
        {
            "id": label.id,
            "name": label.name,
            "color": list(label.color),
            "supercategory": label.category,
            "isthing": int(label.hasInstances),
        }
        for label in labels
        if not label.ignoreInEval
    ]


# Published files


def _check_published(job: Job, record: Record | None) -> list[str]:
    check_picture(job.picture)
    polygons, label_ids, instance_ids = job.sources
    faults = []
    for check, path in (
        (_read_polygons, polygons),
        (_read_label_ids, label_ids),
        (_read_instance_ids, instance_ids),
    ):
        try:
            check(path, job.picture)
        except UserError as error:
            faults.append(str(error))
    return faults


def _read_polygons(path: Path, picture: Path) -> Annotation:
    content = read_json(path)
    try:
        size = content["imgHeight"], content["imgWidth"]
        names = {entry["label"] for entry in content["objects"] if not entry.get("deleted")}
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is no file of polygons ({error!r}).") from error
    require_size(path, size, picture)
    unknown = {name for name in names if not {name, name.removesuffix("group")} & set(name2label)}
    if unknown:
        raise UserError(f"{path} has a polygon of {min(unknown)!r}, which is no label's name.")
    annotation = Annotation()
    annotation.fromJsonText(json.dumps(content))
    return annotation


def _read_label_ids(path: Path, picture: Path) -> np.ndarray:
    """uint8 (H, W)."""
    ids = read_labels(path)
    require_size(path, ids.shape, picture)
    unknown = set(distinct(ids)[0].tolist()) - set(id2label)
    if unknown:
        raise UserError(f"{path} has the label {max(unknown)}; labels are 0 to 33.")
    return ids


def _read_instance_ids(path: Path, picture: Path) -> np.ndarray:
    """int32 (H, W): a label, or 1000 times a label of things plus a number."""
    ids = read_image(path)
    if ids.ndim != 2:
        raise UserError(f"{path} has {ids.shape[2]} channels; instance ids have one.")
    require_size(path, ids.shape, picture)
    ids = ids.astype(np.int32)
    for value in distinct(ids)[0].tolist():
        label = id2label.get(value if value < 1000 else value // 1000)
        if label is None or (value >= 1000 and not label.hasInstances):
            raise UserError(f"{path} has the instance id {value}, whose label is unknown.")
    return ids


# Semantic


def _train_ids(job: Job) -> np.ndarray:
    annotation = _read_polygons(job.sources[0], job.picture)
    return np.asarray(createLabelImage(annotation, "trainIds"))


def _make_semantic(job: Job) -> None:
    write_png(job.outputs[0], _train_ids(job))


def _check_semantic(job: Job, record: Record | None) -> list[str]:
    made = job.outputs[0]
    ids = read_labels(made)
    require_size(made, ids.shape, job.picture)
    unknown = set(distinct(ids)[0].tolist()) - _TRAIN_IDS
    if unknown:
        return [f"{made} has the label {max(unknown)}; labels are 0 to 18, or 255."]
    if (ids != _train_ids(job)).mean() > _LARGEST_DIFFERENCE:
        return [f"{made} shows other classes than {job.sources[0]}."]
    return []


# Panoptic


def _panoptic(job: Job) -> tuple[np.ndarray, Record]:
    """Segment ids (H, W) and the record; pixels that are not evaluated are in no segment."""
    ids = _read_instance_ids(job.sources[0], job.picture)
    segments = []
    for value, measures in measure(ids).items():
        label = id2label[value if value < 1000 else value // 1000]
        if label.ignoreInEval:
            ids[ids == value] = 0
        else:
            crowd = int(label.hasInstances and value < 1000)
            segments.append({"id": value, "category_id": label.id, "iscrowd": crowd, **measures})
    height, width = ids.shape
    image = {
        "id": job.name,
        "file_name": f"{job.name}_gtFine_leftImg8bit.png",
        "height": height,
        "width": width,
    }
    annotation = {
        "image_id": job.name,
        "file_name": f"{job.name}_gtFine_panoptic.png",
        "segments_info": segments,
    }
    return ids, {"image": image, "annotations": [annotation]}


def _make_panoptic(job: Job) -> Record:
    ids, record = _panoptic(job)
    write_png(job.outputs[0], id2rgb(ids))
    return record


def _check_panoptic(listing: Path, job: Job, record: Record | None) -> list[str]:
    made = job.outputs[0]
    ids = read_segment_ids(made, job.picture)
    if record is None:
        return []
    annotation = record["annotations"][0]
    faults = segment_faults(listing, made, annotation, measure(ids), _CATEGORIES)
    if faults:
        return faults
    expected_ids, expected = _panoptic(job)
    if (ids != expected_ids).any():
        faults.append(f"{made} shows other segments than {job.sources[0]}.")
    if record != expected:
        faults.append(f"{listing} says otherwise of image {job.name} than {job.sources[0]}.")
    return faults


CITYSCAPES = Dataset(
    folder="cityscapes",
    published={"train": 2_975, "val": 500},
    made=("gtFine/*_gtFine_labelTrainIds.png", "gtFine/cityscapes_panoptic_*"),
    steps=_steps,
)
