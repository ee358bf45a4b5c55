"""Which evaluators a dataset needs, from a table keyed by its ``evaluator_type``."""

from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
)
from detectron2.utils import comm

from aff_seg.errors import UserError
from aff_seg.evaluation import cityscapes
from aff_seg.evaluation.panoptic import PanopticEvaluator

# The output of the model that an evaluator reads, and how to build the evaluator from
# (dataset name, output folder).
Entry = tuple[str, Callable[[str, str], DatasetEvaluator]]

SEMANTIC: Entry = ("SEMANTIC_ON", lambda name, folder: SemSegEvaluator(name, output_dir=folder))
COCO: Entry = ("INSTANCE_ON", lambda name, folder: COCOEvaluator(name, output_dir=folder))
PANOPTIC: Entry = ("PANOPTIC_ON", PanopticEvaluator)
CITYSCAPES_SEMANTIC: Entry = (
    "SEMANTIC_ON",
    lambda name, folder: cityscapes.SemanticEvaluator(name),
)
CITYSCAPES_INSTANCE: Entry = (
    "INSTANCE_ON",
    lambda name, folder: cityscapes.InstanceEvaluator(name),
)

EVALUATORS: dict[str, tuple[Entry, ...]] = {
    "sem_seg": (SEMANTIC,),
    "coco": (COCO,),
    "cityscapes_sem_seg": (CITYSCAPES_SEMANTIC,),
    "cityscapes_instance": (CITYSCAPES_INSTANCE,),
    "cityscapes_panoptic_seg": (PANOPTIC, CITYSCAPES_INSTANCE, CITYSCAPES_SEMANTIC),
}


def check_evaluators(cfg: CfgNode) -> None:
    """Make sure before any work that every dataset of ``DATASETS.TEST`` can be scored.

    Raises:
        UserError: as :func:`build_evaluator`.
    """
    for name in cfg.DATASETS.TEST:
        _entries(cfg, name)


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluators:
    """The evaluators that score a dataset on the outputs that ``MASK_FORMER.TEST`` turns on.

    Args:
        cfg: config with ``MODEL.MASK_FORMER.TEST``.
        dataset_name: registered name; its metadata holds ``evaluator_type``.
        output_folder: where evaluators leave their predictions.

    Raises:
        UserError: no evaluator is known for the dataset, it scores none of the outputs that
            are on, or it cannot run on several machines.
    """
    return DatasetEvaluators(
        [build(dataset_name, output_folder) for _, build in _entries(cfg, dataset_name)]
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
    flags = cfg.MODEL.MASK_FORMER.TEST
    entries = [entry for entry in EVALUATORS[kind] if flags[entry[0]]]
    if not entries:
        wanted = " or ".join(on for on, _ in EVALUATORS[kind])
        raise UserError(
            f"Dataset {dataset_name} needs MODEL.MASK_FORMER.TEST.{wanted} to be evaluated."
        )
    return entries
