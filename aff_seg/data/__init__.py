"""Datasets: registration, checks before training, and mappers that feed it."""

from aff_seg.data import builtin  # noqa: F401  registers datasets
from aff_seg.data.checks import check_datasets
from aff_seg.data.custom import register_custom
from aff_seg.data.mappers import MAPPERS, EvaluationMapper, build_train_mapper

__all__ = ["MAPPERS", "EvaluationMapper", "build_train_mapper", "check_datasets", "register_custom"]
