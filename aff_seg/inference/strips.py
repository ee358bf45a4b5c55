"""Masks at the size of the result, some rows at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Mask values in a strip: on a CPU they fit its caches; elsewhere few strips keep it busy.
_CPU_STRIP, _DEVICE_STRIP = 1 << 21, 1 << 28


@dataclass(frozen=True)
class Strip:
    """Masks of some rows of the result.

    Attributes:
        rows: which rows.
        logits, probability: ``(Q, n, w)``.
    """

    rows: slice
    logits: Tensor
    probability: Tensor


class MaskStrips:
    """The masks of one image, resized bilinearly from the canvas to the result.

    Args:
        logits: ``(Q, H, W)`` on the canvas, or at any size if no other is given.
        padded: (height, width) of the padded image, to which the canvas is stretched.
        crop: (height, width) of the image inside it.
        size: (height, width) of the result, to which the crop is stretched.

    Source: Mask2Former's order of resizing; the two steps are not the same as one.
    """

    def __init__(
        self,
        logits: Tensor,
        padded: tuple[int, int] | None = None,
        crop: tuple[int, int] | None = None,
        size: tuple[int, int] | None = None,
    ):
        self._logits = logits
        self._padded = padded or tuple(logits.shape[1:])
        self._crop = crop or self._padded
        #: (height, width) of the result.
        self.size = size or self._crop

    def __iter__(self) -> Iterator[Strip]:
        budget = _CPU_STRIP if self._logits.device.type == "cpu" else _DEVICE_STRIP
        height, width = self.size
        step = max(1, budget // max(1, len(self._logits) * max(width, self._padded[1])))
        for start in range(0, height, step):
            rows = slice(start, min(start + step, height))
            logits = self._widen(self._take_rows(rows))
            yield Strip(rows, logits, logits.sigmoid())

    def _take_rows(self, rows: slice) -> Tensor:
        """Rows of the result that are as wide as the canvas still, ``(Q, n, W)``."""
        if self._logits.shape[1] == self._padded[0] and self._crop[0] == self.size[0]:
            return self._logits[:, rows]
        at = torch.arange(rows.start, rows.stop, device=self._logits.device)
        if self._crop[0] == self.size[0]:
            return self._padded_rows(at)
        low, high, share = _between(at, self._crop[0], self.size[0])
        return self._padded_rows(low).lerp(self._padded_rows(high), share[:, None])

    def _padded_rows(self, at: Tensor) -> Tensor:
        low, high, share = _between(at, self._logits.shape[1], self._padded[0])
        above, below = self._logits.index_select(1, low), self._logits.index_select(1, high)
        return above.lerp(below, share[:, None])

    def _widen(self, rows: Tensor) -> Tensor:
        rows = _stretch(rows, self._padded[1])[..., : self._crop[1]]
        return _stretch(rows, self.size[1])


def _between(at: Tensor, source: int, target: int) -> tuple[Tensor, Tensor, Tensor]:
    """The source rows above and below rows ``at`` of the target, and the share of the latter."""
    # In float32, as torch's interpolation reckons.
    scale = torch.full((), source / target, dtype=torch.float32, device=at.device)
    place = ((at + 0.5) * scale - 0.5).clamp(min=0)
    low = place.long().clamp(max=source - 1)
    return low, (low + 1).clamp(max=source - 1), (place - low).clamp(max=1)


def _stretch(rows: Tensor, width: int) -> Tensor:
    """``(Q, n, W)`` to ``(Q, n, width)``."""
    if rows.shape[2] == width:
        return rows
    if len(rows) == 0:  # which interpolation refuses
        return rows.new_zeros(0, rows.shape[1], width)
    lines = rows.flatten(0, 1)[None]
    lines = F.interpolate(lines, size=width, mode="linear", align_corners=False)
    return lines[0].unflatten(0, rows.shape[:2])
