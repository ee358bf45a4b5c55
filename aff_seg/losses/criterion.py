"""Set loss of masks and classes (Mask2Former, arXiv 2112.01527, section 3.3)."""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor, nn

from aff_seg.losses.matcher import HungarianMatcher, Match
from aff_seg.losses.points import dice, draw_uncertain_points, sample_masks


class SetCriterion(nn.Module):
    """Unweighted losses of every prediction after matching.

    Args:
        num_classes: K, without "no object".
        matcher: assigns queries to targets.
        no_object_weight: weight of "no object" in the cross-entropy.
        num_points: points per mask.
        oversample_ratio: candidates per point, of which the most uncertain are kept.
        importance_sample_ratio: share of the points chosen by uncertainty; the rest is uniform.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        matcher: HungarianMatcher,
        no_object_weight: float,
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.no_object_weight = no_object_weight
        self.matcher = matcher
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = no_object_weight
        self.register_buffer("empty_weight", empty_weight)
        self._whole_batch = None

    @contextlib.contextmanager
    def as_one(self, counts: list[int]) -> Iterator[None]:
        """Within, batches are parts of one; their losses add up to those of all together.

        Args:
            counts: number of targets of every image of this process.
        """
        self._whole_batch = counts
        try:
            yield
        finally:
            self._whole_batch = None

    def forward(self, outputs: dict, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Losses of the last prediction and, with a suffix ``_0``, ``_1``, ..., the earlier ones.

        Args:
            outputs: ``pred_logits`` (B, Q, K + 1), ``pred_masks`` (B, Q, H, W) and, if any,
                ``aux_outputs``, a list of the same.
            targets: per image ``labels`` (n,) int64 and ``masks`` (n, h, w).

        Returns:
            ``loss_ce``, ``loss_mask``, ``loss_dice`` and their suffixed copies.
        """
        logits = outputs["pred_logits"]
        counts = self._whole_batch or [len(target["labels"]) for target in targets]
        divisors = self._divisors(counts, logits.shape[1], logits.device)
        predictions = {"": outputs}
        for i, early in enumerate(outputs.get("aux_outputs", [])):
            predictions[f"_{i}"] = early
        # Sums over thousands of points overflow in 16 bits.
        with torch.autocast(logits.device.type, enabled=False):
            matches = self.matcher.match_all(list(predictions.values()), targets)
            pairs = _pairs(matches, targets)
            return {
                f"{name}{suffix}": value
                for (suffix, prediction), found in zip(predictions.items(), pairs, strict=True)
                for name, value in self._losses(prediction, targets, found, *divisors).items()
            }

    def _divisors(
        self, counts: list[int], queries: int, device: torch.device
    ) -> tuple[float, float]:
        """Number of masks, and weight of all queries in the cross-entropy.

        Both are means over processes, so that the losses of a batch do not depend on how it is
        split among them.
        """
        matched = sum(min(count, queries) for count in counts)
        unmatched = len(counts) * queries - matched
        sums = [float(sum(counts)), matched + self.no_object_weight * unmatched]
        if comm.get_world_size() > 1:
            shared = torch.tensor(sums, dtype=torch.float64, device=device)
            torch.distributed.all_reduce(shared)
            sums = (shared / comm.get_world_size()).tolist()
        return max(sums[0], 1.0), sums[1] or 1.0

    def _losses(
        self,
        outputs: dict,
        targets: list[dict[str, Tensor]],
        pairs: "_Pairs",
        num_masks: float,
        class_weight: float,
    ) -> dict[str, Tensor]:
        logits, masks = outputs["pred_logits"], outputs["pred_masks"]
        classes = torch.full_like(logits[..., 0], self.num_classes, dtype=torch.int64)
        classes[pairs.image, pairs.query] = pairs.label
        # One row per query: the loss of rows has one order of summing on every device.
        rows = logits.float().flatten(0, 1)
        loss_ce = F.cross_entropy(rows, classes.flatten(), self.empty_weight, reduction="sum")
        matched = masks[pairs.image, pairs.query].float()
        loss_mask, loss_dice = self._mask_losses(matched, targets, pairs)
        return {
            "loss_ce": loss_ce / class_weight,
            "loss_mask": loss_mask / num_masks,
            "loss_dice": loss_dice / num_masks,
        }

    def _mask_losses(
        self, masks: Tensor, targets: list[dict[str, Tensor]], pairs: "_Pairs"
    ) -> tuple[Tensor, Tensor]:
        """Sums of BCE and dice of matched ``(T, H, W)`` logits."""
        if len(masks) == 0:
            return masks.sum(), masks.sum()
        with torch.no_grad():
            points = draw_uncertain_points(
                masks,
                self.num_points,
                oversample_ratio=self.oversample_ratio,
                importance_sample_ratio=self.importance_sample_ratio,
            )
            places = zip(pairs.target.split(pairs.counts), points.split(pairs.counts), strict=True)
            truth = [
                sample_masks(target["masks"][index], part).to(masks)
                for target, (index, part) in zip(targets, places, strict=True)
                if len(index)
            ]
            truth = torch.cat(truth)
        logits = sample_masks(masks, points)
        bce = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)
        return bce.sum(), dice(logits, truth).sum()


@dataclass(frozen=True)
class _Pairs:
    """Matched queries and targets of one prediction, image after image.

    Attributes:
        image, query, target: ``(T,)`` int64 on the device of the targets; the target is counted
            within its image.
        label: class of the target, ``(T,)`` int64.
        counts: how many each image has.
    """

    image: Tensor
    query: Tensor
    target: Tensor
    label: Tensor
    counts: list[int]


def _pairs(matches: list[list[Match]], targets: list[dict[str, Tensor]]) -> list[_Pairs]:
    """Matches of each prediction on the device, which is not waited for."""
    labels = torch.cat([target["labels"].long() for target in targets])
    first = [0, *itertools.accumulate(len(target["labels"]) for target in targets)]
    columns = [
        torch.stack((torch.full_like(query, i), query, target, first[i] + target))
        for images in matches
        for i, (query, target) in enumerate(images)
    ]
    counts = [len(query) for query, _ in matches[0]]
    table = torch.cat(columns, dim=1).to(labels.device, non_blocking=True)
    table = table.unflatten(1, (len(matches), -1))
    return [
        _Pairs(image, query, target, labels[place], counts)
        for image, query, target, place in table.unbind(1)
    ]
