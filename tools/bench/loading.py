"""Rows of data loading: a training mapper's stages, and images as training gets them."""

import itertools
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from aff_seg.data import build_train_mapper
from aff_seg.data.stream import build_train_loader
from aff_seg.randomness import seeded
from aff_seg.setup_cfg import load_cfg
from bench.miniatures import size_of
from bench.models import REPO
from bench.rows import OURS, Row, text
from bench.stages import STAGES, StageClock, timed_mapper

SECTION = "data loading, one image"
# One task for each mapper and dataset; COCO semantic has the mapper of COCO panoptic.
TASKS = (
    *("ade20k/semantic", "ade20k/panoptic", "ade20k/instance"),
    *("coco/instance", "coco/panoptic"),
    *("cityscapes/semantic", "cityscapes/panoptic", "cityscapes/instance"),
)
QUICK_TASKS = ("ade20k/semantic", "coco/instance", "cityscapes/panoptic")
WHOLE, WORKER = "whole mapper", "one worker process"
_BATCH = 2


def loading_rows(task: str, quick: bool, rounds: int) -> Iterator[Row]:
    """Means over all images of a dataset, augmented anew in every round.

    Args:
        task: ``<dataset>/<task>``, a recipe.
        quick: the dataset is small.
        rounds: passes over the dataset after one that does not count.
    """
    cfg = load_cfg(str(REPO / f"configs/{task}/aff_mini.yaml"))
    name = f"{task}, {cfg.INPUT.DATASET_MAPPER_NAME}"
    size = text(size_of(task, quick))
    clock = StageClock()
    records = DatasetCatalog.get(cfg.DATASETS.TRAIN[0])
    with _one_thread(), timed_mapper(build_train_mapper(cfg), clock) as mapper:
        for number in range(rounds + 1):
            if number == 1:
                clock.seconds.clear()
            for place, record in enumerate(records, number * len(records)):
                with seeded(0, place):
                    mapper(record)
    runs = rounds * len(records)
    whole = sum(clock.seconds.values()) / runs
    note = f"{1 / whole:.1f} images/s"
    yield Row(SECTION, f"{name}: {WHOLE}", size, OURS, whole, runs, note=note, dtype="")
    for stage in STAGES:
        seconds = clock.seconds.get(stage, 0.0) / runs
        if seconds:
            share = f"{seconds / whole:.0%}"
            what = f"{name}: {stage}"
            yield Row(SECTION, what, size, OURS, seconds, runs, note=share, dtype="")
    seconds = _through_worker(cfg, runs)
    note = f"{1 / seconds:.1f} images/s per worker"
    yield Row(SECTION, f"{name}: {WORKER}", size, OURS, seconds, runs, note=note, dtype="")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Within, this process computes as a data worker does."""
    threads, pool = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(pool)


def _through_worker(cfg: CfgNode, images: int) -> float:
    """Seconds for an image that another process loads and hands over."""
    # As train_net.py does; this process was itself started in another way.
    multiprocessing.set_start_method("fork", force=True)
    cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", _BATCH, "DATALOADER.NUM_WORKERS", 1, "SEED", 0])
    batches = iter(build_train_loader(cfg, build_train_mapper(cfg)))
    try:
        # The first come late, and those after them wait ready.
        for _ in itertools.islice(batches, 3):
            pass
        start, count = time.perf_counter(), -(-images // _BATCH)
        for _ in itertools.islice(batches, count):
            pass
        return (time.perf_counter() - start) / (count * _BATCH)
    finally:
        batches.close()
