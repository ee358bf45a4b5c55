"""Rows of a training step's parts, told by hooks of the modules and of the optimizer."""

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial

import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from aff_seg.data import build_train_mapper
from aff_seg.data.stream import build_train_loader
from aff_seg.engine.loop import Batch, StepOptions, TrainLoop
from aff_seg.engine.solver import build_optimizer
from aff_seg.setup_cfg import load_cfg
from bench.measure import Sample, Stopwatch, best_device, combine, lazily, take_turns
from bench.models import REPO
from bench.parts import DTYPES, PATIENCE
from bench.rows import FLOAT32, OURS, Row, make_rows

SECTION = "training step"
DATA, FORWARD, CRITERION = "data", "forward", "criterion and matcher"
BACKWARD, OPTIMIZER, WHOLE = "backward", "optimizer", "whole step"
PARTS = (DATA, FORWARD, CRITERION, BACKWARD, OPTIMIZER)
TASK = "cityscapes/panoptic"
# For tests.
_QUICK = ("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.CROP.SIZE", (64, 64))


def step_rows(variant: str, images: int, quick: bool, runs: int) -> Iterator[Row]:
    """A step of the Cityscapes panoptic recipe, whose images are loaded by the same process.

    Args:
        variant: of AFF.
        images: of the batch.
        quick: with small images.
        runs: steps that count.
    """
    opts = ("SOLVER.IMS_PER_BATCH", images, "DATALOADER.NUM_WORKERS", 0, "SEED", 0)
    opts = [*opts, "TEST.EVAL_PERIOD", 0, *(_QUICK if quick else ())]
    cfg = load_cfg(str(REPO / f"configs/{TASK}/aff_{variant}.yaml"), opts)
    size = tuple(cfg.INPUT.CROP.SIZE)
    loader = build_train_loader(cfg, build_train_mapper(cfg))
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    name = f"AFF-{variant.capitalize()}, {TASK}, batch of {images}"
    for dtype, exact in DTYPES.items():
        if dtype != FLOAT32 and best_device().type == "cpu":
            continue
        precision = None if dtype == FLOAT32 else exact
        watched = _WatchedLoop(model, loader, optimizer, StepOptions(precision=precision))
        try:
            ways = {OURS: lazily(lambda watched=watched: watched)}
            figures, reasons = take_turns(ways, runs, PATIENCE)
        finally:
            watched.close()
        rows = make_rows(SECTION, size, figures, reasons, partial(_name, name), dtype=dtype)
        yield from _with_workers(rows)


def _name(step: str, part: str) -> str:
    return f"{step}: {part or WHOLE}"


def _with_workers(rows: list[Row]) -> list[Row]:
    """The same rows; that of the data says how many workers load as fast as the rest runs."""
    seconds = {row.what.split(": ")[-1]: row.seconds for row in rows}
    for row in rows:
        if row.what.endswith(f": {DATA}") and row.seconds:
            workers = math.ceil(row.seconds / (seconds[WHOLE] - row.seconds))
            row.note = f"in turn with the rest; {workers} or more workers would hide it"
    return rows


class _WatchedLoop:
    """A way: each call is a step of training.

    A GPU is waited for at the end of every part, so that its work counts where it belongs.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loader: Iterable[Batch],
        optimizer: torch.optim.Optimizer,
        options: StepOptions,
    ):
        self._device = best_device()
        self._watch: Stopwatch | None = None
        self._loop = TrainLoop(model, self._watched(loader), optimizer, options)
        self._hooks = ExitStack()
        for handle in (
            model.criterion.register_forward_pre_hook(lambda *_: self._lap(FORWARD)),
            model.criterion.register_forward_hook(lambda *_: self._lap(CRITERION)),
            optimizer.register_step_pre_hook(lambda *_: self._lap(BACKWARD)),
            optimizer.register_step_post_hook(lambda *_: self._lap(OPTIMIZER)),
        ):
            self._hooks.callback(handle.remove)

    def __call__(self, memory: bool) -> dict[str, Sample]:
        with EventStorage() as self._loop.storage:
            self._watch = Stopwatch(self._device, memory)
            self._loop.run_step()
        laps = self._watch.samples
        return {WHOLE: combine(laps, PARTS), **{part: laps[part] for part in PARTS}}

    def close(self) -> None:
        """Take the hooks off and end the loading."""
        self._hooks.close()
        self._loop.close_data()

    def _watched(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        for batch in loader:
            self._lap(DATA)
            yield batch

    def _lap(self, part: str) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._watch.lap(part)
