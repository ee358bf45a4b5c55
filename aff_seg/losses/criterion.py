"""Set loss of masks and classes (Mask2Former, arXiv 2112.01527, section 3.3)."""

import torch
import torch.nn.functional as F
from detectron2.projects.point_rend.point_features import (
    get_uncertain_point_coords_with_randomness,
)
from detectron2.utils import comm
from torch import Tensor, nn

from aff_seg.losses.matcher import HungarianMatcher
from aff_seg.losses.points import dice, sample_masks


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
        self.matcher = matcher
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = no_object_weight
        self.register_buffer("empty_weight", empty_weight)

    def forward(self, outputs: dict, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Losses of the last prediction and, with a suffix ``_0``, ``_1``, ..., the earlier ones.

        Args:
            outputs: ``pred_logits`` (B, Q, K + 1), ``pred_masks`` (B, Q, H, W) and, if any,
                ``aux_outputs``, a list of the same.
            targets: per image ``labels`` (n,) int64 and ``masks`` (n, h, w).

        Returns:
            ``loss_ce``, ``loss_mask``, ``loss_dice`` and their suffixed copies.
        """
        num_masks = self._average_number_of_masks(targets, outputs["pred_logits"].device)
        predictions = {"": outputs}
        for i, early in enumerate(outputs.get("aux_outputs", [])):
            predictions[f"_{i}"] = early
        # Sums over thousands of points overflow in 16 bits.
        with torch.autocast(outputs["pred_logits"].device.type, enabled=False):
            return {
                f"{name}{suffix}": value
                for suffix, prediction in predictions.items()
                for name, value in self._losses(prediction, targets, num_masks).items()
            }

    @staticmethod
    def _average_number_of_masks(targets: list[dict[str, Tensor]], device: torch.device) -> float:
        total = torch.tensor([float(sum(len(t["labels"]) for t in targets))], device=device)
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(total)
        return max(total.item() / comm.get_world_size(), 1.0)

    def _losses(
        self, outputs: dict, targets: list[dict[str, Tensor]], num_masks: float
    ) -> dict[str, Tensor]:
        logits, masks = outputs["pred_logits"], outputs["pred_masks"]
        matches = self.matcher(logits, masks, targets)
        image = torch.cat([torch.full_like(q, i) for i, (q, _) in enumerate(matches)])
        query = torch.cat([q for q, _ in matches])
        labels = [t["labels"].cpu()[i].long() for t, (_, i) in zip(targets, matches, strict=True)]

        classes = torch.full(logits.shape[:2], self.num_classes, dtype=torch.int64)
        classes[image, query] = torch.cat(labels)
        # One row per query: the loss of rows has one order of summing on every device.
        loss_ce = F.cross_entropy(
            logits.float().flatten(0, 1), classes.flatten().to(logits.device), self.empty_weight
        )
        matched = masks[image.to(masks.device), query.to(masks.device)].float()
        wanted = [
            t["masks"][i.to(t["masks"].device)].to(matched)
            for t, (_, i) in zip(targets, matches, strict=True)
            if len(i)
        ]
        loss_mask, loss_dice = self._mask_losses(matched, wanted, num_masks)
        return {"loss_ce": loss_ce, "loss_mask": loss_mask, "loss_dice": loss_dice}

    def _mask_losses(
        self, masks: Tensor, wanted: list[Tensor], num_masks: float
    ) -> tuple[Tensor, Tensor]:
        """BCE and dice of matched ``(T, H, W)`` logits against targets.

        ``wanted`` are the ``(n, h, w)`` targets of each image that has any, T in all.
        """
        if len(masks) == 0:
            return masks.sum(), masks.sum()
        with torch.no_grad():
            points = get_uncertain_point_coords_with_randomness(
                masks[:, None],
                lambda logits: -logits.abs(),
                self.num_points,
                self.oversample_ratio,
                self.importance_sample_ratio,
            )
            parts = points.split([len(target) for target in wanted])
            truth = torch.cat([sample_masks(*pair) for pair in zip(wanted, parts, strict=True)])
        logits = sample_masks(masks, points)
        bce = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)
        return bce.sum() / num_masks, dice(logits, truth).sum() / num_masks
