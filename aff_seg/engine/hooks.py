"""Hooks that show how a training run goes, and keep its best weights."""

import datetime
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping

import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from torch import nn

from aff_seg.atomic_file import atomic_open
from aff_seg.engine.checkpoint import Checkpointer
from aff_seg.engine.checkpoint_file import write_checkpoint
from aff_seg.engine.curves import plot_curves
from aff_seg.evaluation.report import metric_of
from aff_seg.randomness import random_state
from aff_seg.stopping import STOPPED_STATUS, Stopped

logger = logging.getLogger(__name__)


class Saver(HookBase):
    """Save every ``period`` iterations, before evaluations, at the end, and before stopping.

    Belongs into every process, for each has random states; comes before the hook that
    evaluates, whose results are no part of what is saved.

    Args:
        checkpointer: writes ``model_<iteration>.pth`` and ``model_final.pth``.
        period: iterations.
        evaluation_period: iterations; 0: there is no evaluation but that at the end.
    """

    def __init__(self, checkpointer: Checkpointer, period: int, evaluation_period: int) -> None:
        self._checkpointer = checkpointer
        self._periods = [n for n in (period, evaluation_period) if n > 0]

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        stops = self.trainer.must_stop
        due = stops or any(done % period == 0 for period in self._periods)
        names = [f"model_{done - 1:07d}"] if due else []
        if done >= self.trainer.max_iter:
            names.append("model_final")
        if not names:
            return
        states = comm.gather(random_state())
        if comm.is_main_process():
            for name in names:
                self._checkpointer.save(name, iteration=done - 1, random=states)
        # Nobody ends while the first still writes.
        comm.synchronize()
        if stops:
            logger.warning(
                "Asked to stop: ends after iteration %d with status %d; --resume goes on.",
                *(done, STOPPED_STATUS),
            )
            raise Stopped


class Evaluator(hooks.EvalHook):
    """Evaluate every ``period`` iterations, at the end, and first of all where a run goes on there.

    Checkpoints are written before evaluations, which a kill may have cut short.

    Args:
        period: iterations; 0: at the end alone.
        evaluate: returns nested results.
    """

    def __init__(self, period: int, evaluate: Callable[[], Mapping]) -> None:
        super().__init__(period, evaluate)

    def before_train(self) -> None:
        done = self.trainer.start_iter
        if self._period > 0 and 0 < done < self.trainer.max_iter and done % self._period == 0:
            self.trainer.storage.iter = done - 1
            self._do_eval()


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


class BestKeeper(HookBase):
    """Keep the weights that score best, as ``model_best.pth``, with the score in a JSON file.

    Comes after the hook that evaluates. The file holds weights alone and is never resumed from;
    a resumed run goes on with the best score that was noted before its checkpoint.

    Args:
        model: whose weights are kept.
        output_dir: where both files go.
        metric: see ``TEST.BEST_METRIC``; higher is better.
    """

    WEIGHTS, NOTE = "model_best.pth", "model_best.json"

    def __init__(self, model: nn.Module, output_dir: str, metric: str) -> None:
        self._model = model
        self._folder = output_dir
        self._metric = metric
        self._best = -math.inf
        self._seen = None

    def before_train(self) -> None:
        path = os.path.join(self._folder, self.NOTE)
        start = self.trainer.start_iter
        if start > 0 and os.path.isfile(path):
            with open(path, encoding="utf-8") as file:
                note = json.load(file)
            if note["metric"] == self._metric and note["iteration"] <= start:
                self._best = note["value"]
        self._keep_if_best(start)

    def after_step(self) -> None:
        self._keep_if_best(self.trainer.iter + 1)

    def after_train(self) -> None:
        self._keep_if_best(self.trainer.max_iter)

    def _keep_if_best(self, iteration: int) -> None:
        if not self.trainer.last_results:
            return
        dataset, tasks = next(iter(self.trainer.last_results.items()))
        if tasks is self._seen:
            return
        self._seen = tasks
        value = metric_of(tasks, self._metric)
        if value is None:
            logger.warning("%s has no %s: no best weights are kept.", dataset, self._metric)
        elif value > self._best:
            self._best = float(value)
            self._save(dataset, iteration)

    def _save(self, dataset: str, iteration: int) -> None:
        weights = {"model": self._model.state_dict()}
        write_checkpoint(os.path.join(self._folder, self.WEIGHTS), weights)
        note = {"metric": self._metric, "value": self._best, "iteration": iteration}
        with atomic_open(os.path.join(self._folder, self.NOTE)) as file:
            file.write(json.dumps({**note, "dataset": dataset}).encode())
        logger.info(
            "Best %s so far: %.2f after %d iterations.", self._metric, self._best, iteration
        )
