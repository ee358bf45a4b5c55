"""Writes a whole shapes dataset, once, and knows whether it is already there."""

import json
import os
import shutil
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from tqdm import tqdm

from aff_seg.data.preparation.steps import TASKS, Dataset, prepare
from aff_seg.data.shapes.ade20k import Ade20kWriter
from aff_seg.data.shapes.cityscapes import CityscapesWriter
from aff_seg.data.shapes.coco import CocoWriter
from aff_seg.data.shapes.scene import SMALLEST_ACROSS, draw_scene
from aff_seg.errors import UserError

LAYOUTS = {"ade20k": Ade20kWriter, "coco": CocoWriter, "cityscapes": CityscapesWriter}
# Lies in the dataset's folder: what is being made, and in the end how many files it has.
MANIFEST = "shapes.json"
_DRAFT = MANIFEST + ".tmp"
_SPLITS = ("train", "val")
_RAW_CASES = {0: "empty", 1: "full"}
_SMALLEST_SIDE = 32
_LARGEST_SIDE = 8192
_LARGEST_COUNT = 900_000


def write_dataset(
    *,
    layout: str,
    root: str | os.PathLike,
    train: int,
    val: int,
    size: tuple[int, int],
    seed: int = 0,
    raw: bool = False,
    progress: bool = True,
) -> bool:
    """Draw scenes and write them as one of the official datasets lies on disk.

    Scene ``i`` of a split depends on ``seed``, the split, ``i``, ``size`` and ``raw`` only, so
    equal arguments give equal bytes. A run that was cut short is made anew.

    Args:
        layout: "ade20k", "coco" or "cityscapes".
        root: folder for ``DETECTRON2_DATASETS``; may hold other shapes layouts already.
        train: number of training images.
        val: number of validation images.
        size: (height, width) of every image, in pixels.
        seed: not negative.
        raw: as it is downloaded, for trying ``datasets/prepare_*.py``, which make the rest. The
            first image of each split has no things then; the second has a crowd, a thing that
            the border cuts, and regions that are not evaluated.
        progress: whether to show a bar.

    Returns:
        True if the dataset was written, False if it was already there.

    Raises:
        UserError: an argument is out of range, or ``root`` holds something else.
    """
    request = {
        "layout": layout,
        "train": train,
        "val": val,
        "size": list(size),
        "seed": seed,
    }
    _check_arguments(**request)
    request["raw"] = raw
    dataset = LAYOUTS[layout].dataset
    folder = Path(root) / dataset.folder
    if _is_complete(folder, request):
        return False
    try:
        _start(Path(root), folder, request)
        writer = LAYOUTS[layout](folder)
        for number, (split, count) in enumerate(zip(_SPLITS, (train, val), strict=True)):
            for index in tqdm(range(count), f"{layout} {split}", disable=not progress):
                rng = np.random.default_rng([seed, number, index])
                case = _RAW_CASES.get(index, "usual") if raw else "usual"
                writer.add(draw_scene(rng, tuple(size), case), split, index)
            writer.finish(split)
            if not raw:
                _prepare(dataset, folder, split, progress)
        _write_manifest(folder, {**request, "files": _count_files(folder, request)})
    except OSError as error:
        raise UserError(
            f"Cannot write below {root} ({error.strerror}); free some space there or choose "
            "another folder as root."
        ) from error
    return True


def _prepare(dataset: Dataset, folder: Path, split: str, progress: bool) -> None:
    for make_step in dataset.steps(folder, split, TASKS, False):
        _, faults = prepare(make_step(), workers=1, progress=progress)
        if faults:
            raise UserError(faults[0])


def _check_arguments(*, layout: str, train: int, val: int, size: list[int], seed: int) -> None:
    if layout not in LAYOUTS:
        raise UserError(f"layout is {layout!r}; it must be one of {', '.join(LAYOUTS)}.")
    for name, count in (("train", train), ("val", val)):
        if not 1 <= count <= _LARGEST_COUNT:
            raise UserError(
                f"{name} is {count}; the number of images must be 1 to {_LARGEST_COUNT}."
            )
    if len(size) != 2 or not all(_SMALLEST_SIDE <= side <= _LARGEST_SIDE for side in size):
        shown = " ".join(str(side) for side in size)
        raise UserError(
            f"size is {shown}; give a height and a width of {_SMALLEST_SIDE} to "
            f"{_LARGEST_SIDE} pixels, for the smallest things are {SMALLEST_ACROSS} across."
        )
    if seed < 0:
        raise UserError(f"seed is {seed}; it must not be negative.")


def _is_complete(folder: Path, request: dict) -> bool:
    """Whether ``folder`` holds the finished dataset of ``request``; another one is refused."""
    if not (folder / MANIFEST).is_file():
        return False
    found = _read_manifest(folder)
    files = found.pop("files", None)
    if files is None:
        return False
    found.setdefault("raw", False)
    if found != request:
        made_with = ", ".join(f"{key} {value}" for key, value in found.items())
        raise UserError(
            f"{folder} holds a shapes dataset made with other arguments ({made_with}); "
            "choose another root or delete that folder."
        )
    count = _count_files(folder, request)
    if files != count:
        raise UserError(
            f"{folder} has {count} files where {files} were written; delete "
            "that folder and run the command again."
        )
    return True


def _start(root: Path, folder: Path, request: dict) -> None:
    """Make ``folder`` anew, holding only the manifest of an unfinished dataset."""
    ours = {writer.dataset.folder for writer in LAYOUTS.values()}
    root.mkdir(parents=True, exist_ok=True)
    for entry in sorted(root.iterdir()):
        if entry.name not in ours or not _is_ours(entry):
            raise UserError(
                f"{root} already holds {entry.name}, which is not a shapes dataset; choose an "
                "empty folder as root."
            )
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    _write_manifest(folder, request)


def _is_ours(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    names = set(os.listdir(folder))
    return MANIFEST in names or names <= {_DRAFT}


def _read_manifest(folder: Path) -> dict:
    path = folder / MANIFEST
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{path} is damaged ({error}); delete {folder} and run the command again."
        ) from error


def _write_manifest(folder: Path, content: dict) -> None:
    draft = folder / _DRAFT
    draft.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(draft, folder / MANIFEST)


def _count_files(folder: Path, request: dict) -> int:
    """Number of files; of a raw dataset, without those that were prepared since."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    made = LAYOUTS[request["layout"]].dataset.made if request["raw"] else ()
    return sum(not any(fnmatch(str(name), pattern) for pattern in made) for name in names)
