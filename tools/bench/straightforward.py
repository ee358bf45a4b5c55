"""The losses as one would write them down: one prediction, image and object after the other.

What tests and times compare those of :mod:`aff_seg.losses` with. On a CPU both draw the same random
points from the same seed.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.projects.point_rend.point_features import (
    get_uncertain_point_coords_with_randomness,
    point_sample,
)
from scipy.optimize import linear_sum_assignment
from torch import Tensor


@dataclass(frozen=True)
class Settings:
    """Of matching and losses, with the published values."""

    num_classes: int
    cost_class: float = 2.0
    cost_mask: float = 5.0
    cost_dice: float = 5.0
    no_object_weight: float = 0.1
    num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75


def straightforward_losses(
    outputs: dict, targets: list[dict[str, Tensor]], settings: Settings
) -> dict[str, Tensor]:
    """What :class:`aff_seg.losses.SetCriterion` gives for the same arguments, in one process."""
    predictions = {"": outputs}
    predictions |= {f"_{i}": early for i, early in enumerate(outputs.get("aux_outputs", []))}
    matches = {
        suffix: [
            match(logits, masks, target, settings)
            for logits, masks, target in zip(
                prediction["pred_logits"], prediction["pred_masks"], targets, strict=True
            )
        ]
        for suffix, prediction in predictions.items()
    }
    losses = {}
    for suffix, prediction in predictions.items():
        found = _losses(prediction, targets, matches[suffix], settings)
        losses |= {f"{name}{suffix}": value for name, value in found.items()}
    return losses


@torch.no_grad()
def match(
    logits: Tensor, masks: Tensor, target: dict[str, Tensor], settings: Settings
) -> tuple[list[int], list[int]]:
    """Queries and targets of an image.

    Args:
        logits: ``(Q, K + 1)``.
        masks: ``(Q, H, W)`` logits.
        target: ``labels`` (n,) and ``masks`` (n, h, w).
        settings: see there.
    """
    points = torch.rand(1, settings.num_points, 2, device=masks.device)
    masks = _read(masks, points)
    wanted = _read(target["masks"].float(), points)
    probability = logits.softmax(-1)
    costs = logits.new_zeros(len(logits), len(wanted))
    for i, (label, truth) in enumerate(zip(target["labels"], wanted, strict=True)):
        truth = truth.expand_as(masks)
        costs[:, i] = (
            -settings.cost_class * probability[:, label]
            + settings.cost_mask * _bce(masks, truth)
            + settings.cost_dice * _dice(masks, truth)
        )
    query, index = linear_sum_assignment(costs.cpu().numpy())
    return query.tolist(), index.tolist()


def _losses(
    prediction: dict,
    targets: list[dict[str, Tensor]],
    matches: list[tuple[list[int], list[int]]],
    settings: Settings,
) -> dict[str, Tensor]:
    logits, masks = prediction["pred_logits"], prediction["pred_masks"]
    classes = torch.full(logits.shape[:2], settings.num_classes, device=logits.device)
    loss_mask, loss_dice = masks.sum() * 0, masks.sum() * 0
    for image, (target, match) in enumerate(zip(targets, matches, strict=True)):
        for query, index in zip(*match, strict=True):
            classes[image, query] = target["labels"][index]
            bce, dice = _mask_losses(masks[image, query], target["masks"][index], settings)
            loss_mask, loss_dice = loss_mask + bce, loss_dice + dice
    weight = torch.ones(settings.num_classes + 1, device=logits.device)
    weight[-1] = settings.no_object_weight
    num_masks = max(1, sum(len(target["labels"]) for target in targets))
    return {
        "loss_ce": F.cross_entropy(logits.transpose(1, 2), classes, weight),
        "loss_mask": loss_mask / num_masks,
        "loss_dice": loss_dice / num_masks,
    }


def _mask_losses(mask: Tensor, wanted: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """BCE and dice of ``(H, W)`` logits against a target ``(h, w)``."""
    mask = mask[None]
    with torch.no_grad():
        points = get_uncertain_point_coords_with_randomness(
            mask[None],
            lambda logits: -logits.abs(),
            settings.num_points,
            settings.oversample_ratio,
            settings.importance_sample_ratio,
        )
        truth = _read(wanted[None].float(), points)
    logits = _read(mask, points)
    return _bce(logits, truth)[0], _dice(logits, truth)[0]


def _read(masks: Tensor, points: Tensor) -> Tensor:
    """``(T, h, w)`` masks at the same ``(1, P, 2)`` points, ``(T, P)``."""
    return point_sample(masks[None], points, align_corners=False)[0]


def _bce(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean over points: ``(T, P)`` twice to ``(T,)``."""
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)


def _dice(logits: Tensor, truth: Tensor) -> Tensor:
    """``(T, P)`` twice to ``(T,)``."""
    probability = logits.sigmoid()
    overlap = 2 * (probability * truth).sum(1)
    return 1 - (overlap + 1) / (probability.sum(1) + truth.sum(1) + 1)
