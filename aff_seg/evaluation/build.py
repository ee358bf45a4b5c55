"""Which evaluators a dataset needs, from a table keyed by its ``evaluator_type``."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm

from aff_seg.architectures import FLAGS, detectron2_architecture, outputs_of
from aff_seg.data.checks import remedy
from aff_seg.errors import UserError
from aff_seg.evaluation import cityscapes
from aff_seg.evaluation.instance import InstanceEvaluator
from aff_seg.evaluation.panoptic import PanopticEvaluator
from aff_seg.evaluation.report import COLUMNS
from aff_seg.evaluation.semantic import SemanticEvaluator


@dataclass(frozen=True)
class Entry:
    """A kind of evaluator.

    Attributes:
        output: what it reads of the model's outputs, see :mod:`aff_seg.architectures`.
        task: its key in the results.
        build: from (dataset name, output folder).
        reads: key of the dataset's metadata with the file that only this evaluator reads.
    """

    output: str
    task: str
    build: Callable[[str, str], DatasetEvaluator]
    reads: str | None = None


SEMANTIC = Entry("sem_seg", "sem_seg", SemanticEvaluator)
INSTANCE = Entry("instances", "segm", InstanceEvaluator, reads="json_file")
BOXES = Entry("boxes", "bbox", partial(InstanceEvaluator, tasks=("bbox",)), reads="json_file")
PANOPTIC = Entry("panoptic_seg", "panoptic_seg", PanopticEvaluator)
CITYSCAPES_SEMANTIC = Entry(
    "sem_seg", "sem_seg", lambda name, folder: cityscapes.SemanticEvaluator(name)
)
CITYSCAPES_INSTANCE = Entry(
    "instances", "segm", lambda name, folder: cityscapes.InstanceEvaluator(name)
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
        UserError: as :func:`build_evaluator`, or a file is missing that only evaluation reads.
    """
    for name in cfg.DATASETS.TEST:
        for entry in _entries(cfg, name):
            path = MetadataCatalog.get(name).get(entry.reads) if entry.reads else None
            if path is not None and not os.path.isfile(path):
                raise UserError(
                    f"Dataset {name}: {path} is missing, which its evaluation reads; "
                    f"{remedy(name, path)}."
                )


def check_best_metric(cfg: CfgNode) -> None:
    """Raise a :class:`UserError` if no score of the first test set is ``TEST.BEST_METRIC``."""
    metric = cfg.TEST.BEST_METRIC
    if not metric or not cfg.DATASETS.TEST:
        return
    name = cfg.DATASETS.TEST[0]
    tasks = {entry.task for entry in _entries(cfg, name)}
    columns = [column for column, task, _ in COLUMNS if task in tasks]
    if metric not in columns and metric.split("/")[0] not in tasks:
        raise UserError(
            f"TEST.BEST_METRIC is {metric!r}, but {name} is scored by {', '.join(columns)}; name "
            "one of these, or '' to keep no best weights."
        )


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluators:
    """The evaluators that score a dataset on what the model of a config gives.

    Args:
        cfg: config of the model, see :func:`aff_seg.architectures.outputs_of`.
        dataset_name: registered name; its metadata holds ``evaluator_type``.
        output_folder: where evaluators leave their predictions.

    Raises:
        UserError: no evaluator is known for the dataset, it scores none of the outputs that
            there are, or it cannot run on several machines.
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
    if kind.startswith("cityscapes") and comm.get_local_size() != comm.get_world_size():
        raise UserError(f"Dataset {dataset_name} can be evaluated on one machine only.")
    outputs = outputs_of(cfg)
    entries = [entry for entry in EVALUATORS[kind] if entry.output in outputs]
    if not entries:
        raise UserError(_nothing_to_score(cfg, dataset_name, EVALUATORS[kind]))
    return entries


def _nothing_to_score(cfg: CfgNode, dataset_name: str, entries: tuple[Entry, ...]) -> str:
    if detectron2_architecture(cfg) is None:
        wanted = " or ".join(FLAGS[entry.output] for entry in entries if entry.output in FLAGS)
        return f"Dataset {dataset_name} needs MODEL.MASK_FORMER.TEST.{wanted} to be evaluated."
    scored = " or ".join(entry.output for entry in entries)
    return (
        f"Dataset {dataset_name} is scored by {scored}, but "
        f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} gives "
        f"{', '.join(sorted(outputs_of(cfg)))}; name another in DATASETS.TEST."
    )
