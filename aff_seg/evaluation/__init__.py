"""Evaluators by dataset type, and the table of their results."""

from aff_seg.evaluation.build import (
    EVALUATORS,
    build_evaluator,
    check_best_metric,
    check_evaluators,
    semantic_tests,
)
from aff_seg.evaluation.report import Results, format_table, metric_of, save_results, summarize

__all__ = [
    "EVALUATORS",
    "Results",
    "build_evaluator",
    "check_best_metric",
    "check_evaluators",
    "format_table",
    "metric_of",
    "save_results",
    "semantic_tests",
    "summarize",
]
