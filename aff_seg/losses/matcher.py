"""Hungarian matching of queries to ground truth."""

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from aff_seg.losses.points import SharedReader, pairwise_bce, pairwise_dice, sample_masks

# Stands for a cost that is not a number, so that one bad query does not stop the training.
_BAD_COST = 1e6

# Query indices and target indices of an image, (min(Q, n),) int64 on the CPU.
Match = tuple[Tensor, Tensor]


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

    def forward(
        self, pred_logits: Tensor, pred_masks: Tensor, targets: list[dict[str, Tensor]]
    ) -> list[Match]:
        """Match every image of a batch.

        Args:
            pred_logits: ``(B, Q, K + 1)``.
            pred_masks: ``(B, Q, H, W)`` logits.
            targets: per image ``labels`` (n,) and ``masks`` (n, h, w).

        Returns:
            a match per image.
        """
        prediction = {"pred_logits": pred_logits, "pred_masks": pred_masks}
        return self.match_all([prediction], targets)[0]

    @torch.no_grad()
    def match_all(
        self, predictions: Sequence[dict[str, Tensor]], targets: list[dict[str, Tensor]]
    ) -> list[list[Match]]:
        """Match several predictions for the same images; a GPU is waited for once.

        Args:
            predictions: each with ``pred_logits`` and ``pred_masks`` as :meth:`forward` takes.
            targets: per image.

        Returns:
            for each prediction, a match per image.
        """
        device = predictions[0]["pred_masks"].device
        with torch.autocast(device.type, enabled=False):
            count = len(predictions) * len(targets)
            points = torch.rand(count, self.num_points, 2, device=device)
            points = points.unflatten(0, (len(predictions), len(targets)))
            costs = [
                cost
                for i, target in enumerate(targets)
                for cost in self._image_costs(predictions, i, target, points[:, i])
            ]
        shapes = [cost.shape for cost in costs]
        costs = torch.cat([cost.flatten() for cost in costs])
        costs = costs.nan_to_num(_BAD_COST, _BAD_COST, -_BAD_COST).cpu()
        parts = costs.split([shape.numel() for shape in shapes])
        matches = [_assign(part.view(shape)) for part, shape in zip(parts, shapes, strict=True)]
        # From image by image to prediction by prediction.
        return [matches[first :: len(predictions)] for first in range(len(predictions))]

    def _image_costs(
        self,
        predictions: Sequence[dict[str, Tensor]],
        image: int,
        target: dict[str, Tensor],
        points: Tensor,
    ) -> list[Tensor]:
        """Costs ``(Q, n)`` of every prediction for an image, at its own of ``points`` (L, P, 2)."""
        labels = target["labels"].long()
        if len(labels) == 0:
            return [points.new_zeros(p["pred_logits"].shape[1], 0) for p in predictions]
        read, costs = SharedReader(target["masks"]), []
        for prediction, places in zip(predictions, points, strict=True):
            chances = prediction["pred_logits"][image].float().softmax(-1)
            masks = sample_masks(prediction["pred_masks"][image].float(), places[None])
            wanted = read(places).T.to(masks)
            costs.append(
                self.cost_class * -chances[:, labels]
                + self.cost_mask * pairwise_bce(masks, wanted)
                + self.cost_dice * pairwise_dice(masks, wanted)
            )
        return costs


def _assign(cost: Tensor) -> Match:
    query, index = linear_sum_assignment(cost.numpy())
    return torch.from_numpy(query), torch.from_numpy(index)
