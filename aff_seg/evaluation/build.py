"""Which evaluators a dataset needs, from a table keyed by its ``evaluator_type``."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from aff_seg.architectures import ARCHITECTURES, FLAGS, detectron2_architecture, outputs_of
from aff_seg.data.checks import remedy
from aff_seg.errors import UserError
from aff_seg.evaluation import cityscapes
from aff_seg.evaluation.instance import InstanceEvaluator
from aff_seg.evaluation.panoptic import GROUPS, PanopticEvaluator
from aff_seg.evaluation.report import COLUMNS
from aff_seg.evaluation.semantic import SemanticEvaluator

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A kind of evaluator.

    Attributes:
        output: what it reads of the model's outputs, see :mod:`aff_seg.architectures`.
        tasks: its keys in the results.
        metrics: the metrics of each; one with ``-`` at its end goes on with the name of a class.
        build: from (dataset name, output folder).
        reads: key of the dataset's metadata with the file that only this evaluator reads.
    """

    output: str
    tasks: tuple[str, ...]
    metrics: tuple[str, ...]
    build: Callable[[str, str], DatasetEvaluator]
    reads: str | None = None


SEMANTIC = Entry(
    "sem_seg",
    ("sem_seg",),
    ("mIoU", "fwIoU", "mACC", "pACC", "IoU-", "ACC-"),
    SemanticEvaluator,
)
_COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AP-")
INSTANCE = Entry(
    "instances",
    ("segm", "bbox"),
    _COCO_METRICS,
    InstanceEvaluator,
    reads="json_file",
)
PANOPTIC = Entry(
    "panoptic_seg",
    ("panoptic_seg",),
    tuple(f"{metric}{group}" for metric in ("PQ", "SQ", "RQ") for group in GROUPS),
    PanopticEvaluator,
)
BOXES = Entry(
    "boxes",
    ("bbox",),
    _COCO_METRICS,
    partial(InstanceEvaluator, tasks=("bbox",)),
    reads="json_file",
)
CITYSCAPES_SEMANTIC = Entry(
    "sem_seg",
    ("sem_seg",),
    ("IoU", "iIoU", "IoU_sup", "iIoU_sup"),
    cityscapes.SemanticEvaluator,
)
CITYSCAPES_INSTANCE = Entry(
    "instances",
    ("segm",),
    ("AP", "AP50"),
    cityscapes.InstanceEvaluator,
)

EVALUATORS: dict[str, tuple[Entry, ...]] = {
    "sem_seg": (SEMANTIC,),
    "coco": (INSTANCE, BOXES),
    "coco_panoptic_seg": (PANOPTIC, INSTANCE, BOXES, SEMANTIC),
    "ade20k_panoptic_seg": (PANOPTIC, INSTANCE, BOXES, SEMANTIC),
    "cityscapes_sem_seg": (CITYSCAPES_SEMANTIC,),
    "cityscapes_instance": (CITYSCAPES_INSTANCE,),
    "cityscapes_panoptic_seg": (PANOPTIC, CITYSCAPES_INSTANCE, CITYSCAPES_SEMANTIC),
}


def check_evaluators(cfg: CfgNode) -> None:
    """Make sure before any work that every dataset of ``DATASETS.TEST`` can be scored.

    Raises:
        UserError: as :func:`build_evaluator`, or a file is missing that only evaluation reads, or
            ``TEST.AUG`` is on without anything that it can be measured on.
    """
    for name in cfg.DATASETS.TEST:
        for entry in _entries(cfg, name):
            path = MetadataCatalog.get(name).get(entry.reads) if entry.reads else None
            if path is not None and not os.path.isfile(path):
                raise UserError(
                    f"Dataset {name}: {path} is missing, which its evaluation reads; "
                    f"{remedy(name, path)}."
                )
    if cfg.MODEL.KEYPOINT_ON and detectron2_architecture(cfg) is not None and cfg.DATASETS.TEST:
        logger.warning(
            "MODEL.KEYPOINT_ON is True, but keypoints are not scored here, only boxes and masks."
        )
    if cfg.TEST.AUG.ENABLED and detectron2_architecture(cfg) is not None:
        raise UserError(
            f"TEST.AUG.ENABLED is True, but test-time augmentation is for MaskFormer, not for "
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}; set it to False."
        )
    if cfg.TEST.AUG.ENABLED and cfg.DATASETS.TEST and not semantic_tests(cfg):
        raise UserError(
            "TEST.AUG.ENABLED is True, but test-time augmentation is of semantic results alone, "
            f"which are not scored on {', '.join(cfg.DATASETS.TEST)}; set it to False or, if the "
            "model and the dataset have semantic classes, MODEL.MASK_FORMER.TEST.SEMANTIC_ON to "
            "True."
        )


def semantic_tests(cfg: CfgNode) -> list[str]:
    """Those of ``DATASETS.TEST`` whose semantic results are scored."""
    return [
        name
        for name in cfg.DATASETS.TEST
        if any(entry.tasks == SEMANTIC.tasks for entry in _entries(cfg, name))
    ]


def check_best_metric(cfg: CfgNode) -> None:
    """Raise a :class:`UserError` if no score of the first test set is ``TEST.BEST_METRIC``."""
    metric = cfg.TEST.BEST_METRIC
    if not metric or not cfg.DATASETS.TEST:
        return
    name = cfg.DATASETS.TEST[0]
    entries = _entries(cfg, name)
    tasks = {task for entry in entries for task in entry.tasks}
    columns = [column for column, task, _ in COLUMNS if task in tasks]
    full = [f"{t}/{one}" for entry in entries for t in entry.tasks for one in entry.metrics]
    of_a_class = tuple(one for one in full if one.endswith("-"))
    if metric not in (*columns, *full) and not metric.startswith(of_a_class):
        raise UserError(
            f"TEST.BEST_METRIC is {metric!r}, but {name} is scored by {', '.join(columns)}; name "
            f"one of these, or of {', '.join(full)}, or '' to keep no best weights."
        )


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluators:
    """The evaluators that score a dataset on what the model of a config gives.

    Args:
        cfg: config of the model, see :func:`aff_seg.architectures.outputs_of`.
        dataset_name: registered name; its metadata holds ``evaluator_type``.
        output_folder: where evaluators leave their predictions.

    Raises:
        UserError: no evaluator is known for the dataset, or it scores none of the outputs that
            are on.
    """
    return DatasetEvaluators(
        [entry.build(dataset_name, output_folder) for entry in _entries(cfg, dataset_name)]
    )


def _entries(cfg: CfgNode, dataset_name: str) -> list[Entry]:
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in EVALUATORS:
        raise UserError(
            f"Dataset {dataset_name} has evaluator_type {kind!r}; "
            f"known are {', '.join(EVALUATORS)}."
        )
    outputs = outputs_of(cfg)
    entries = [entry for entry in EVALUATORS[kind] if entry.output in outputs]
    if not entries:
        raise UserError(_nothing_to_score(cfg, dataset_name, EVALUATORS[kind]))
    return entries


def _nothing_to_score(cfg: CfgNode, dataset_name: str, entries: tuple[Entry, ...]) -> str:
    if detectron2_architecture(cfg) is None:
        wanted = " or ".join(FLAGS[entry.output] for entry in entries if entry.output in FLAGS)
        return f"Dataset {dataset_name} needs MODEL.MASK_FORMER.TEST.{wanted} to be evaluated."
    if not outputs_of(cfg):
        return (
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} is not scored here, only "
            f"{', '.join(ARCHITECTURES)} and MaskFormer are; set DATASETS.TEST to (), and score "
            "it with Detectron2's evaluators."
        )
    scored = " or ".join(entry.output for entry in entries)
    return (
        f"Dataset {dataset_name} is scored by {scored}, but "
        f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} gives "
        f"{', '.join(sorted(outputs_of(cfg)))}; name another in DATASETS.TEST."
    )
