"""Mask terms shared by matching and loss, on sampled points.

Shape legend: T targets, P points.
"""

import torch
import torch.nn.functional as F
from detectron2.projects.point_rend.point_features import point_sample
from torch import Tensor


def sample_masks(masks: Tensor, points: Tensor) -> Tensor:
    """Read masks at points, bilinearly.

    Args:
        masks: ``(T, h, w)``, any floating type.
        points: ``(T, P, 2)`` or ``(1, P, 2)`` (x, y) in [0, 1].

    Returns:
        ``(T, P)``.
    """
    points = points.to(masks).expand(len(masks), -1, -1)
    if torch.are_deterministic_algorithms_enabled():
        return _gather_masks(masks, points)
    return point_sample(masks[:, None], points, align_corners=False).squeeze(1)


def _gather_masks(masks: Tensor, points: Tensor) -> Tensor:
    """The same, slower: on a GPU the gradient of the former is added up in no fixed order."""
    height, width = masks.shape[1:]
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    pixels, out = masks.flatten(1), 0
    for column, in_column in ((left, left + 1 - x), (left + 1, x - left)):
        for row, in_row in ((top, top + 1 - y), (top + 1, y - top)):
            # There are zeros around the mask.
            exists = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
            value = pixels.gather(1, index).masked_fill(~exists, 0)
            out = out + value * (in_column * in_row)
    return out


def pairwise_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy of every pair: ``(Q, P)``, ``(T, P)`` to ``(Q, T)``."""
    positive = F.softplus(-logits)
    negative = F.softplus(logits)
    return (positive @ targets.T + negative @ (1 - targets).T) / logits.shape[1]


def pairwise_dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss of every pair: ``(Q, P)``, ``(T, P)`` to ``(Q, T)``."""
    probability = logits.sigmoid()
    overlap = 2 * probability @ targets.T
    total = probability.sum(1)[:, None] + targets.sum(1)
    return 1 - (overlap + 1) / (total + 1)


def dice(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss of each mask: ``(T, P)`` twice to ``(T,)``."""
    probability = logits.sigmoid()
    overlap = 2 * (probability * targets).sum(1)
    return 1 - (overlap + 1) / (probability.sum(1) + targets.sum(1) + 1)
