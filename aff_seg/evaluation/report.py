"""The results of an evaluation as one table and as a JSON file."""

import json
import math
import os
from collections.abc import Mapping

from tabulate import tabulate

from aff_seg.atomic_file import atomic_open

# {dataset: {task: {metric: value}}}
Results = Mapping[str, Mapping[str, Mapping[str, float]]]

# Columns of the table: name, task and the task's names for the metric.
COLUMNS = (
    ("PQ", "panoptic_seg", ("PQ",)),
    ("SQ", "panoptic_seg", ("SQ",)),
    ("RQ", "panoptic_seg", ("RQ",)),
    ("PQ_th", "panoptic_seg", ("PQ_th",)),
    ("PQ_st", "panoptic_seg", ("PQ_st",)),
    ("AP", "segm", ("AP",)),
    ("AP50", "segm", ("AP50",)),
    ("AP_box", "bbox", ("AP",)),
    ("AP50_box", "bbox", ("AP50",)),
    ("mIoU", "sem_seg", ("mIoU", "IoU")),
    ("mIoU_TTA", "sem_seg_TTA", ("mIoU", "IoU")),
)


def summarize(tasks: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The main metrics of one dataset in percent, by column name, as far as measured.

    Boxes count where there are no masks.
    """
    summary = {}
    for column, task, names in COLUMNS:
        if task == "bbox" and "segm" in tasks:
            continue
        for name in names:
            if name in tasks.get(task, {}):
                summary[column] = float(tasks[task][name])
    return summary


def metric_of(tasks: Mapping[str, Mapping[str, float]], name: str) -> float | None:
    """A metric of one dataset by the name of its column or as task/metric; None if not measured."""
    if name in (column for column, _, _ in COLUMNS):
        return summarize(tasks).get(name)
    task, _, metric = name.partition("/")
    return tasks.get(task, {}).get(metric)


def format_table(results: Results) -> str:
    """A table with a line per dataset and the columns measured on any of them."""
    rows = {dataset: summarize(tasks) for dataset, tasks in results.items()}
    columns = [column for column, _, _ in COLUMNS if any(column in row for row in rows.values())]
    return tabulate(
        [[dataset, *(row.get(column) for column in columns)] for dataset, row in rows.items()],
        headers=["dataset", *columns],
        floatfmt=".2f",
        missingval="-",
    )


def save_results(results: Results, output_dir: str) -> str:
    """Write all results to ``results.json``, nan as null.

    Returns:
        The path of the file: {dataset: {task: {metric: value}}}.
    """
    plain = {
        dataset: {
            task: {name: None if math.isnan(value) else float(value) for name, value in of.items()}
            for task, of in tasks.items()
        }
        for dataset, tasks in results.items()
    }
    path = os.path.join(output_dir, "results.json")
    with atomic_open(path) as file:
        file.write(json.dumps(plain, indent=2).encode())
    return path
