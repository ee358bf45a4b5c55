"""Hooks that show how a training run goes."""

import datetime
import logging
import os
import time

import torch
from detectron2.engine import HookBase

from aff_seg.engine.curves import plot_curves

logger = logging.getLogger(__name__)


class ProgressPrinter(HookBase):
    """Log one line at a time: progress, time left, losses of the last layer, speed.

    Lines come every few seconds at first and once a minute in a run of hours; the first and the
    last iteration have one anyway.
    """

    SECONDS = (5.0, 60.0)

    def before_train(self) -> None:
        self._start = time.perf_counter()
        self._last = -float("inf")

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        now = time.perf_counter()
        shortest, longest = self.SECONDS
        period = min(max(shortest, (now - self._start) / 50), longest)
        if now - self._last >= period or done == self.trainer.max_iter:
            self._last = now
            logger.info(self._line(done))

    def _line(self, done: int) -> str:
        scalars = {key: value for key, (value, _) in self.trainer.storage.latest().items()}
        parts = [f"iter {done}/{self.trainer.max_iter}"]
        if "time" in scalars:
            step = self.trainer.storage.history("time").median(100)
            left = datetime.timedelta(seconds=round(step * (self.trainer.max_iter - done)))
            parts += [f"eta {left}", f"{step:.2f} s/iter"]
        for key in ("total_loss", "loss_ce", "loss_mask", "loss_dice"):
            if key in scalars:
                parts.append(f"{key} {self.trainer.storage.history(key).median(20):.3f}")
        parts.append(f"lr {scalars['lr']:.2e}")
        if torch.cuda.is_available():
            parts.append(f"memory {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB")
        return "  ".join(parts)


class CurvePlotter(HookBase):
    """Draw the curves of ``metrics.json`` at the end, also of an interrupted run."""

    def __init__(self, output_dir: str) -> None:
        self._metrics = os.path.join(output_dir, "metrics.json")
        self._picture = os.path.join(output_dir, "curves.png")

    def after_train(self) -> None:
        if plot_curves(self._metrics, self._picture):
            logger.info("Curves: %s", self._picture)
