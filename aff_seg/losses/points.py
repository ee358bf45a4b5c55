"""Mask terms shared by matching and loss, on sampled points.

Shape legend: Q queries, T targets, P points. Points are (x, y) in [0, 1], from the upper left to
the lower right corner of a mask of any size.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

# Candidates that are looked at together, so that many masks need no more memory than some.
_CANDIDATES = 1 << 20


def sample_masks(masks: Tensor, points: Tensor) -> Tensor:
    """Read masks at points, bilinearly; around a mask there are zeros.

    Args:
        masks: ``(T, h, w)``, of any type; whole numbers are read without a copy as floats.
        points: ``(T, P, 2)``, or ``(1, P, 2)`` shared by all masks.

    Returns:
        ``(T, P)``, of the type of the masks if that is a floating one, else of the points'.
    """
    if not masks.is_floating_point():
        return _gather_masks(masks, points)
    points = points.to(masks)
    # On a GPU the gradient of grid_sample is added up in no fixed order.
    if masks.requires_grad and torch.are_deterministic_algorithms_enabled():
        return _gather_masks(masks, points)
    grid = 2 * points[:, None] - 1
    if len(points) == 1:
        # Channels of one picture: the place of a point is worked out once for all masks.
        return F.grid_sample(masks[None], grid, align_corners=False)[0, :, 0]
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0, 0]


def _gather_masks(masks: Tensor, points: Tensor) -> Tensor:
    """The same, pixel by pixel."""
    pixels, out = masks.flatten(1), 0
    points = points.expand(len(masks), -1, -1)
    for index, outside, weight in _corners(points, *masks.shape[1:]):
        out = out + pixels.gather(1, index).masked_fill(outside, 0) * weight
    return out


class SharedReader:
    """Reads all masks of an image at the same points, again and again.

    It holds a copy in which the masks of a pixel lie side by side.

    Args:
        masks: ``(T, h, w)``, of any type.
    """

    def __init__(self, masks: Tensor):
        self._size = masks.shape[1:]
        self._pixels = masks.flatten(1).T.contiguous()

    def __call__(self, points: Tensor) -> Tensor:
        """Masks at ``(P, 2)`` points, ``(P, T)`` of their type."""
        out = 0
        for index, outside, weight in _corners(points, *self._size):
            weight = weight.masked_fill(outside, 0)
            out = out + self._pixels.index_select(0, index) * weight[:, None]
        return out


def _corners(points: Tensor, height: int, width: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The four pixels around points.

    Args:
        points: ``(..., 2)``.
        height, width: of the mask.

    Yields:
        index of a pixel in the flattened mask, or of any pixel where it lies outside; whether it
        does; its weight. All ``(...)``.
    """
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    rows = [_line(top, top + 1 - y, height), _line(top + 1, y - top, height)]
    for column, beside, in_column in (
        _line(left, left + 1 - x, width),
        _line(left + 1, x - left, width),
    ):
        for row, below, in_row in rows:
            yield row * width + column, beside | below, in_column * in_row


def _line(place: Tensor, weight: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows or columns: which of ``count``, whether they lie outside of these, their weights."""
    return place.clamp(0, count - 1).long(), (place < 0) | (place >= count), weight


def draw_uncertain_points(
    masks: Tensor, count: int, *, oversample_ratio: float, importance_sample_ratio: float
) -> Tensor:
    """Points of which many lie where a mask is undecided, for each mask its own.

    Args:
        masks: ``(T, H, W)`` logits.
        count: P.
        oversample_ratio: uniform candidates per point.
        importance_sample_ratio: share of the points that are the candidates of smallest absolute
            logits; the others are uniform.

    Returns:
        ``(T, P, 2)``.
    """
    candidates, chosen = int(count * oversample_ratio), int(count * importance_sample_ratio)
    drawn = []
    for part in masks.split(max(1, _CANDIDATES // candidates)):
        points = torch.rand(len(part), candidates + count - chosen, 2, device=masks.device)
        certainty = sample_masks(part, points[:, :candidates]).abs_()
        index = certainty.topk(chosen, largest=False, sorted=False).indices
        # A point is gathered at once, as the eight bytes of a complex number.
        uncertain = torch.view_as_complex(points).gather(1, index)
        drawn += [torch.cat((torch.view_as_real(uncertain), points[:, candidates:]), dim=1)]
    return torch.cat(drawn)


def pairwise_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy of every pair: ``(Q, P)``, ``(T, P)`` to ``(Q, T)``."""
    return (F.softplus(logits).sum(1, keepdim=True) - logits @ targets.T) / logits.shape[1]


def pairwise_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss of every pair: ``(Q, P)``, ``(T, P)`` to ``(Q, T)``."""
    probability = logits.sigmoid()
    overlap = 2 * (probability @ targets.T)
    total = probability.sum(1)[:, None] + targets.sum(1)
    return 1 - (overlap + 1) / (total + 1)


def dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss of each mask: ``(T, P)`` twice to ``(T,)``."""
    probability = logits.sigmoid()
    overlap = 2 * (probability * targets).sum(1)
    return 1 - (overlap + 1) / (probability.sum(1) + targets.sum(1) + 1)
