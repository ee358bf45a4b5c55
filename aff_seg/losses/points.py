"""Mask terms shared by matching and loss, on sampled points.

Shape legend: T targets, P points.
"""

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
    return point_sample(masks[:, None], points, align_corners=False).squeeze(1)


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
