"""Instance results. Shape legend: Q queries, K classes (index K is "no object"), (h, w) pixels."""

from collections.abc import Collection

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from .strips import MaskStrips, Strip


def best_pairs(mask_cls: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The most probable (query, class) pairs: probability, query, class, each (n,)."""
    probability = mask_cls.softmax(-1)[:, :-1]
    best = probability.flatten().sort(descending=True, stable=True)
    score, pair = best.values[:count], best.indices[:count]
    classes = probability.shape[1]
    return score, pair.div(classes, rounding_mode="floor"), pair % classes


class InstanceMasks:
    """Masks of the best queries, gathered strip by strip.

    Args:
        mask_cls: ``(Q, K + 1)`` class logits.
        size: (h, w).
        max_detections, thing_classes: see :func:`instance_inference`.
    """

    def __init__(
        self,
        mask_cls: Tensor,
        size: tuple[int, int],
        *,
        max_detections: int,
        thing_classes: Collection[int] | None = None,
    ):
        score, query, label = best_pairs(mask_cls, max_detections)
        if thing_classes is not None:
            things = torch.tensor(sorted(thing_classes), dtype=label.dtype, device=label.device)
            keep = torch.isin(label, things)
            score, query, label = score[keep], query[keep], label[keep]
        self._score, self._query, self._label = score, query, label
        self._masks = mask_cls.new_empty(len(query), *size, dtype=torch.bool)
        # Per query: pixels inside its mask, their probabilities' sum, rows and columns it has.
        self._area = mask_cls.new_zeros(len(mask_cls), dtype=torch.int64)
        self._inside = mask_cls.new_zeros(len(mask_cls))
        self._rows = mask_cls.new_zeros(len(mask_cls), size[0], dtype=torch.bool)
        self._columns = mask_cls.new_zeros(len(mask_cls), size[1], dtype=torch.bool)

    def add(self, strip: Strip) -> None:
        mask = strip.logits > 0
        self._masks[:, strip.rows] = mask[self._query]
        self._area += mask.flatten(1).sum(1)
        self._inside += (strip.probability * mask).flatten(1).sum(1)
        if mask.numel():
            self._rows[:, strip.rows] = mask.amax(2)
            self._columns |= mask.amax(1)

    def result(self) -> Instances:
        """As :func:`instance_inference` gives."""
        quality = self._inside / (self._area + 1e-6)
        x, y = _extent(self._columns), _extent(self._rows)
        boxes = torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), dim=1).float()
        result = Instances(tuple(self._masks.shape[1:]))
        result.pred_masks = self._masks
        result.pred_boxes = Boxes(boxes[self._query])
        result.scores = self._score * quality[self._query]
        result.pred_classes = self._label
        return result


def _extent(hit: Tensor) -> Tensor:
    """First place (n, 2) where ``hit`` (n, length) is true, and the one after the last; or 0, 0."""
    order = hit.to(torch.uint8)
    first, last = order.argmax(1), hit.shape[1] - order.flip(1).argmax(1)
    return torch.stack((first, last), dim=1) * hit.any(1, keepdim=True)


def instance_inference(
    mask_cls: Tensor,
    mask_pred: Tensor,
    *,
    max_detections: int,
    thing_classes: Collection[int] | None = None,
) -> Instances:
    """Scored instances.

    Args:
        mask_cls: ``(Q, K + 1)`` class logits.
        mask_pred: ``(Q, h, w)`` mask logits.
        max_detections: most (query, class) pairs to look at.
        thing_classes: keep pairs of these classes only; None keeps all.

    Returns:
        instances with ``pred_masks`` (n, h, w) bool, ``pred_boxes`` (tight, far edges exclusive,
        zeros for an empty mask), ``scores`` (class probability times mean mask probability
        inside the mask) and ``pred_classes``.
    """
    strips = MaskStrips(mask_pred)
    masks = InstanceMasks(
        mask_cls, strips.size, max_detections=max_detections, thing_classes=thing_classes
    )
    for strip in strips:
        masks.add(strip)
    return masks.result()
