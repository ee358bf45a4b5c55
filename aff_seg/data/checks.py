"""Checks of the configured datasets, before any time is spent on training."""

import difflib
import os
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.utils.file_io import PathManager

from aff_seg.architectures import detectron2_architecture
from aff_seg.data.cityscapes_files import check_cityscapes_files
from aff_seg.data.remedies import draw_command, is_drawn, prepare_command
from aff_seg.errors import UserError

_PATH_KEYS = (
    "image_root",
    "image_dir",
    "json_file",
    "panoptic_json",
    "panoptic_root",
    "sem_seg_root",
)
_FILE_KEYS = ("file_name", "sem_seg_file_name", "pan_seg_file_name")
# Layout of make_shapes.py and folder in the root, by the beginning of a dataset's name.
_LAYOUTS = {"coco_2017_": ("coco", "coco"), "ade20k_": ("ade20k", "ADEChallengeData2016")}
# Parts of paths that datasets/prepare_*.py make.
_MADE = (
    "annotations_detectron2",
    "ade20k_instance_",
    "ade20k_panoptic_",
    "panoptic_semseg_",
    "panoptic_stuff_",
)
_INSTANCE_EVALUATORS = ("coco", "cityscapes_instance")


def check_datasets(cfg: CfgNode, *, splits: tuple[str, ...] = ("TRAIN", "TEST")) -> None:
    """Make sure that the datasets of ``cfg`` are known, complete, and fit the model.

    Every image and annotation file must exist (their content is not read), and the number
    of classes must be that of the model: ``MODEL.SEM_SEG_HEAD.NUM_CLASSES``, or where Detectron2's
    other architectures have theirs.

    Args:
        cfg: names under ``DATASETS``.
        splits: which of its lists to check; ("TEST",) is enough to evaluate.

    Raises:
        UserError: says what is wrong and which command mends it.
    """
    if "TRAIN" in splits and not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN is empty; name a dataset to train on.")
    names = [name for split in splits for name in cfg.DATASETS[split]]
    # Images without objects are passed over in training.
    seeks_objects = "TRAIN" in splits and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    for name in dict.fromkeys(names):
        _check_registered(name)
        metadata = MetadataCatalog.get(name)
        if metadata.get("evaluator_type", "").startswith("cityscapes"):
            check_cityscapes_files(name, metadata)
            trains = True
        else:
            trains = any(map(_can_train, _check_files(name, metadata)))
        if name in cfg.DATASETS.TRAIN and trains:
            seeks_objects = False
        _check_class_counts(name, metadata, cfg)
    if seeks_objects:
        raise UserError(
            f"No image of {', '.join(cfg.DATASETS.TRAIN)} shows an object to train on; correct the "
            "annotations."
        )


def _can_train(record: dict) -> bool:
    """Whether an image has no list of objects, or one with an object that is no crowd."""
    objects = record.get("annotations")
    return objects is None or any(not annotation.get("iscrowd", 0) for annotation in objects)


def _check_registered(name: str) -> None:
    known = DatasetCatalog.list()
    if name in known:
        return
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "register it before training."
    raise UserError(f"There is no dataset named {name!r}; {hint}")


def _check_files(name: str, metadata: Metadata) -> list[dict]:
    """Check any dataset: the paths it was registered with, then the files of its records."""
    for key in _PATH_KEYS:
        path = metadata.get(key)
        # A panoptic dataset names the JSON file of its instances only for their evaluation.
        if path is None or (key == "json_file" and metadata.get("panoptic_json") is not None):
            continue
        if not PathManager.exists(path):
            raise UserError(f"Dataset {name}: {path} is missing; {remedy(name, path)}.")
    if metadata.get("evaluator_type") == "sem_seg":
        _check_pairs(name, metadata)
    try:
        records = DatasetCatalog.get(name)
    except UserError as error:
        raise UserError(f"Dataset {name}: {error}") from error
    # Detectron2's loaders assert what they find; broken JSON and foreign ids end here too.
    except (AssertionError, OSError, LookupError, TypeError, ValueError) as error:
        listing = metadata.get("panoptic_json", metadata.get("json_file"))
        source = f" from {listing}" if listing else ""
        raise UserError(
            f"Dataset {name} cannot be read{source} ({type(error).__name__}: {error}); "
            f"{remedy(name)}."
        ) from error
    if not records:
        raise UserError(f"Dataset {name} has no images; {remedy(name)}.")
    for record in records:
        for key in _FILE_KEYS:
            if key in record and not PathManager.isfile(record[key]):
                raise UserError(
                    f"Dataset {name}: {record[key]} ({key} of a record) is missing; "
                    f"{remedy(name, record[key])}."
                )
    return records


def _check_pairs(name: str, metadata: Metadata) -> None:
    """Detectron2 pairs pictures and label images by name, and drops those left over."""
    image_root, label_root = metadata.get("image_root"), metadata.get("sem_seg_root")
    if image_root is None or label_root is None:
        return
    labelled = {os.path.splitext(file)[0] for file in PathManager.ls(label_root)}
    for file in sorted(PathManager.ls(image_root)):
        if os.path.splitext(file)[0] not in labelled:
            raise UserError(
                f"Dataset {name}: image {os.path.join(image_root, file)} has no label image in "
                f"{label_root}; {remedy(name, label_root)}."
            )


def remedy(name: str, path: str = "") -> str:
    """How to mend a dataset where ``path`` is missing: a command, or what to look at."""
    for beginning, (layout, folder) in _LAYOUTS.items():
        if name.startswith(beginning):
            root = Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()
            draw = draw_command(layout, root)
            if is_drawn(root / folder):
                return f"delete {root / folder} and draw it anew: {draw}"
            if (root / folder).is_dir() and any(made in path for made in _MADE):
                return f"make it with: {prepare_command(layout, root)}"
            return (
                f"fetch the dataset into {root / folder} as datasets/README.md shows, or draw "
                f"one: {draw}"
            )
    return "correct the paths with which it is registered, or complete its files"


def _check_class_counts(name: str, metadata: Metadata, cfg: CfgNode) -> None:
    things, stuff = metadata.get("thing_classes"), metadata.get("stuff_classes")
    architecture = detectron2_architecture(cfg)
    if architecture is not None:
        counted = {architecture.things: things, architecture.stuff: stuff}
    elif metadata.get("evaluator_type") in _INSTANCE_EVALUATORS:
        counted = {"SEM_SEG_HEAD": things}
    else:
        counted = {"SEM_SEG_HEAD": stuff if stuff is not None else things}
    for part, classes in counted.items():
        if part is None or classes is None:
            continue
        key, count = f"MODEL.{part}.NUM_CLASSES", cfg.MODEL[part].NUM_CLASSES
        if len(classes) != count:
            raise UserError(
                f"Dataset {name} has {len(classes)} classes, but {key} is {count}; choose a config "
                f"file made for this dataset or set {key} {len(classes)}."
            )
