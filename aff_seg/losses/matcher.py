"""Hungarian matching of queries to ground truth."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from aff_seg.losses.points import pairwise_bce, pairwise_dice, sample_masks

# Stands for a cost that is not a number, so that one bad query does not stop the training.
_BAD_COST = 1e6


class HungarianMatcher(nn.Module):
    """Cheapest one-to-one assignment under class, mask and dice costs.

    Args:
        cost_class, cost_mask, cost_dice: weights.
        num_points: points per image on which masks are compared, shared by all of them.
    """

    def __init__(self, *, cost_class: float, cost_mask: float, cost_dice: float, num_points: int):
        super().__init__()
        self.cost_class, self.cost_mask, self.cost_dice = cost_class, cost_mask, cost_dice
        self.num_points = num_points

    @torch.no_grad()
    def forward(
        self, pred_logits: Tensor, pred_masks: Tensor, targets: list[dict[str, Tensor]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Match every image of a batch.

        Args:
            pred_logits: ``(B, Q, K + 1)``.
            pred_masks: ``(B, Q, H, W)`` logits.
            targets: per image ``labels`` (n,) and ``masks`` (n, h, w).

        Returns:
            per image, query indices and target indices, both ``(min(Q, n),)`` int64 on the CPU.
        """
        with torch.autocast(pred_masks.device.type, enabled=False):
            return [
                self._match(logits, masks, target)
                for logits, masks, target in zip(pred_logits, pred_masks, targets, strict=True)
            ]

    def _match(
        self, logits: Tensor, masks: Tensor, target: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        if len(target["labels"]) == 0:
            return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
        points = torch.rand(1, self.num_points, 2, device=masks.device)
        masks = sample_masks(masks.float(), points)
        wanted = sample_masks(target["masks"].to(masks), points)
        cost = (
            self.cost_class * -logits.float().softmax(-1)[:, target["labels"].long()]
            + self.cost_mask * pairwise_bce(masks, wanted)
            + self.cost_dice * pairwise_dice(masks, wanted)
        )
        cost = cost.nan_to_num(_BAD_COST, _BAD_COST, -_BAD_COST).cpu()
        query, index = linear_sum_assignment(cost.numpy())
        return torch.from_numpy(query), torch.from_numpy(index)
