"""One step of training: parts of a batch, mixed precision, losses that are no numbers."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from aff_seg.errors import UserError

logger = logging.getLogger(__name__)

# Named like a loss where it is the gradient that is not finite.
GRADIENT = "gradient"
# A batch, as a list with a dict per image.
Batch = list[dict]


@dataclass(frozen=True)
class StepOptions:
    """How a step is done.

    Attributes:
        parts: pieces of equal size that a batch is passed in, one after the other.
        max_skipped: most steps in a row that may be skipped.
        precision: type of autocast; None computes in float32.
        as_one: given a batch, a context in which the losses of its parts add up to its own. None:
            the losses of a batch are the means of those of its parts.
    """

    parts: int = 1
    max_skipped: int = 0
    precision: torch.dtype | None = None
    as_one: Callable[[Batch], contextlib.AbstractContextManager] | None = None


class TrainLoop(SimpleTrainer):
    """Detectron2's loop with gradients added up over parts, autocast, and skipped steps.

    A step with a loss or a gradient that is infinite or not a number leaves weights and buffers,
    such as the statistics of batch norms, alone, in all processes. In float16 the gradients are
    scaled; where they overflow, the scaler leaves out the step and lowers its scale, and only at
    a scale of 1 or less do these steps count.

    Args:
        model: returns a dict of losses.
        data_loader: yields lists with a dict per image.
        optimizer: of the model's parameters.
        options: see there.
        wants_stop: whether this process was asked to stop.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Batch],
        optimizer: torch.optim.Optimizer,
        options: StepOptions = StepOptions(),  # noqa: B008  frozen
        wants_stop: Callable[[], bool] = lambda: False,
    ):
        super().__init__(model, data_loader, optimizer)
        self.options = options
        self.skipped = 0
        self.must_stop = False
        self._wants_stop = wants_stop
        self._device = next(model.parameters()).device
        scales = options.precision == torch.float16
        self.grad_scaler = torch.amp.GradScaler(self._device.type, enabled=scales)

    def run_step(self) -> None:
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        losses, bad = self._backward(batch)
        self.after_backward()
        # The scale is 1 where there is no scaler.
        if not bad and self.grad_scaler.get_scale() <= 1 and not self._gradient_norm().isfinite():
            bad[GRADIENT] = _names(batch)
        skip, self.must_stop = self._any(bool(bad), self._wants_stop())
        if skip:
            self.optimizer.zero_grad()
            for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(before)
            self._count_skipped(bad)
            return
        self.skipped = 0
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _backward(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """Add up the gradients of the parts.

        Returns:
            the losses of the batch, on the CPU; for each that is not finite, the images of the
            parts in which it is not.
        """
        size = len(batch) // self.options.parts
        total, bad = {}, {}
        as_one = self.options.as_one
        with as_one(batch) if as_one else contextlib.nullcontext():
            for first in range(0, len(batch), size):
                part = batch[first : first + size]
                losses = self._backward_part(part, last=first + size >= len(batch))
                for name, loss in losses.items():
                    total[name] = total.get(name, 0) + loss
                    if not loss.isfinite():
                        bad.setdefault(name, []).extend(_names(part))
        return total, bad

    def _backward_part(self, part: Batch, *, last: bool) -> dict[str, Tensor]:
        device, precision = self._device.type, self.options.precision
        waits = not last and isinstance(self.model, DistributedDataParallel)
        with self.model.no_sync() if waits else contextlib.nullcontext():
            with torch.autocast(device, dtype=precision, enabled=precision is not None):
                losses = self.model(part)
            if self.options.as_one is None and self.options.parts > 1:
                losses = {name: loss / self.options.parts for name, loss in losses.items()}
            self.grad_scaler.scale(sum(losses.values())).backward()
        # One transfer for all.
        values = torch.stack([loss.detach().float() for loss in losses.values()]).cpu()
        return dict(zip(losses, values, strict=True))

    def _gradient_norm(self) -> Tensor:
        return nn.utils.clip_grad_norm_(self.model.parameters(), max_norm=float("inf"))

    def _any(self, *flags: bool) -> list[bool]:
        """Which flags are set in any process."""
        if comm.get_world_size() == 1:
            return list(flags)
        common = torch.tensor(flags, dtype=torch.int32, device=self._device)
        torch.distributed.all_reduce(common, op=torch.distributed.ReduceOp.MAX)
        return common.bool().tolist()

    def _count_skipped(self, bad: dict[str, list[str]]) -> None:
        self.skipped += 1
        merged: dict[str, list[str]] = {}
        for one in comm.all_gather(bad):
            for name, images in one.items():
                merged.setdefault(name, []).extend(images)
        if len(merged) > 1:
            # Gradients are shared: a bad loss in one process spoils them in all.
            merged.pop(GRADIENT, None)
        images = dict.fromkeys(image for images in merged.values() for image in images)
        what = f"{', '.join(merged)} not finite on {', '.join(images)}"
        most = self.options.max_skipped
        if self.skipped > most:
            raise UserError(
                f"Iteration {self.iter + 1}: {what}; that is more than {most} such iterations in "
                "a row (SOLVER.MAX_SKIPPED). Look at these images, lower SOLVER.BASE_LR, or train "
                "with SOLVER.AMP.ENABLED False."
            )
        logger.warning(
            "Iteration %d is skipped, %s (%d in a row, at most %d).",
            *(self.iter + 1, what, self.skipped, most),
        )

    def close_data(self) -> None:
        """End the processes that load data, where there are any."""
        self._data_loader_iter.close()

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state["skipped"] = self.skipped
        if self.grad_scaler.is_enabled():
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.skipped = state_dict.get("skipped", 0)
        # A run may go on in another precision.
        if self.grad_scaler.is_enabled() and "grad_scaler" in state_dict:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _names(part: Batch) -> list[str]:
    return [image.get("file_name", "an image without a name") for image in part]
