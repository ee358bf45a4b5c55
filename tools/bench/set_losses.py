"""Rows of criterion and matcher, forward and backward, against the straightforward way."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from aff_seg.losses import HungarianMatcher, SetCriterion
from bench.measure import Way, best_device, single, take_turns
from bench.parts import PATIENCE
from bench.rows import OURS, Row, make_rows
from bench.straightforward import Settings, straightforward_losses

SECTION = "criterion and matcher"
PLAIN = "one object after the other"
OBJECTS, QUERIES, PREDICTIONS, CLASSES = 40, 100, 10, 133


def what(images: int) -> str:
    """The thing in the table."""
    return (
        f"{images} images of {OBJECTS} objects, {QUERIES} queries, {PREDICTIONS} predictions, "
        "forward + backward"
    )


def loss_rows(images: int, size: tuple[int, int], points: int, runs: int) -> Iterator[Row]:
    """Losses of random predictions, masks at a quarter of the size of the targets.

    Args:
        images: of the batch.
        size: of the images.
        points: of a mask.
        runs: of each way.
    """
    outputs, targets = _batch(images, size)
    settings = Settings(CLASSES, num_points=points)
    criterion = make_criterion(settings).to(best_device())
    ways = {
        OURS: _way(lambda: criterion(outputs, targets), outputs),
        PLAIN: _way(lambda: straightforward_losses(outputs, targets, settings), outputs),
    }
    figures, reasons = take_turns(ways, runs, PATIENCE)
    yield from make_rows(SECTION, size, figures, reasons, lambda _: what(images))


def make_criterion(settings: Settings) -> SetCriterion:
    """Ours with the same settings."""
    matcher = HungarianMatcher(
        cost_class=settings.cost_class,
        cost_mask=settings.cost_mask,
        cost_dice=settings.cost_dice,
        num_points=settings.num_points,
    )
    return SetCriterion(
        num_classes=settings.num_classes,
        matcher=matcher,
        no_object_weight=settings.no_object_weight,
        num_points=settings.num_points,
        oversample_ratio=settings.oversample_ratio,
        importance_sample_ratio=settings.importance_sample_ratio,
    )


def _way(call: object, outputs: dict) -> Way:
    leaves = [p[key] for p in (outputs, *outputs["aux_outputs"]) for key in p if "pred" in key]

    def run() -> None:
        torch.autograd.grad(sum(call().values()), leaves)

    return single(run, best_device())


def _batch(images: int, size: tuple[int, int]) -> tuple[dict, list[dict[str, Tensor]]]:
    """Blobs as predictions; boxes of a twentieth to half of the sides as targets."""
    device = best_device()
    height, width = size
    predictions = []
    for _ in range(PREDICTIONS):
        blobs = 3 * torch.randn(images, QUERIES, height // 32, width // 32, device=device)
        masks = F.interpolate(blobs, scale_factor=8, mode="bilinear")
        logits = torch.randn(images, QUERIES, CLASSES + 1, device=device)
        predictions.append(
            {"pred_logits": logits.requires_grad_(), "pred_masks": masks.requires_grad_()}
        )
    y = torch.arange(height, device=device)[:, None] / height
    x = torch.arange(width, device=device) / width
    targets = []
    for _ in range(images):
        centre = torch.rand(2, OBJECTS, 1, 1, device=device)
        radius = 0.025 + 0.225 * torch.rand(2, OBJECTS, 1, 1, device=device)
        masks = ((y - centre[0]).abs() < radius[0]) & ((x - centre[1]).abs() < radius[1])
        labels = torch.randint(CLASSES, (OBJECTS,), device=device)
        targets.append({"labels": labels, "masks": masks})
    return {**predictions[-1], "aux_outputs": predictions[:-1]}, targets
