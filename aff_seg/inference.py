"""From the queries' logits of one image to semantic, panoptic and instance results.

Shape legend: Q queries, K classes (index K is "no object"), (h, w) pixels of the result.
"""

from collections.abc import Collection

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor


def semantic_inference(mask_cls: Tensor, mask_pred: Tensor) -> Tensor:
    """Class scores of every pixel.

    Args:
        mask_cls: ``(Q, K + 1)`` class logits.
        mask_pred: ``(Q, h, w)`` mask logits.

    Returns:
        ``(K, h, w)``, each query's class probabilities summed with its mask as weight.
    """
    classes = mask_cls.softmax(-1)[:, :-1]
    return torch.einsum("qk,qhw->khw", classes, mask_pred.sigmoid())


def confident_queries(mask_cls: Tensor, object_threshold: float) -> Tensor:
    """Indices (n,) of queries whose best class is an object above the threshold."""
    score, label = mask_cls.softmax(-1).max(-1)
    return ((label != mask_cls.shape[1] - 1) & (score > object_threshold)).nonzero().squeeze(1)


def panoptic_inference(
    mask_cls: Tensor,
    mask_pred: Tensor,
    *,
    thing_classes: Collection[int],
    object_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, list[dict]]:
    """One segment for every pixel.

    Args:
        mask_cls: ``(Q, K + 1)`` class logits.
        mask_pred: ``(Q, h, w)`` mask logits.
        thing_classes: classes whose segments stay apart; others are merged per class.
        object_threshold: least class probability of a query.
        overlap_threshold: least share of a query's mask that it must win from the others.

    Returns:
        ``(h, w)`` int32 map of segment ids, 0 for none; segments with ``id`` (from 1, in query
        order), ``isthing`` and ``category_id``.
    """
    kept = confident_queries(mask_cls, object_threshold)
    if len(kept) == 0:
        return mask_pred.new_zeros(mask_pred.shape[1:], dtype=torch.int32), []
    score, label = mask_cls[kept].softmax(-1).max(-1)
    mask = mask_pred[kept].sigmoid()
    winner = (score[:, None, None] * mask).argmax(0)
    covered = mask >= 0.5
    shown = covered.gather(0, winner[None])[0]
    won = torch.bincount(winner.flatten(), minlength=len(kept))
    own = covered.flatten(1).sum(1)
    visible = torch.bincount(winner[shown], minlength=len(kept))
    rows = torch.stack((label, won, own, visible), dim=1).tolist()

    segments, stuff_ids, segment_of = [], {}, []
    for category, area, original, left in rows:
        segment_of.append(0)
        if area == 0 or original == 0 or left == 0 or area / original < overlap_threshold:
            continue
        is_thing = category in thing_classes
        if not is_thing and category in stuff_ids:
            segment_of[-1] = stuff_ids[category]
            continue
        segments.append({"id": len(segments) + 1, "isthing": is_thing, "category_id": category})
        segment_of[-1] = len(segments)
        if not is_thing:
            stuff_ids[category] = len(segments)
    lookup = torch.tensor(segment_of, dtype=torch.int32, device=mask_pred.device)
    return lookup[winner] * shown, segments


def best_pairs(mask_cls: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The most probable (query, class) pairs: probability, query, class, each (n,)."""
    probability = mask_cls.softmax(-1)[:, :-1]
    best = probability.flatten().sort(descending=True, stable=True)
    score, pair = best.values[:count], best.indices[:count]
    classes = probability.shape[1]
    return score, pair.div(classes, rounding_mode="floor"), pair % classes


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
        instances with ``pred_masks`` (n, h, w) bool, ``pred_boxes``, ``scores`` (class
        probability times mean mask probability inside the mask) and ``pred_classes``.
    """
    score, query, label = best_pairs(mask_cls, max_detections)
    if thing_classes is not None:
        things = torch.tensor(sorted(thing_classes), dtype=label.dtype, device=label.device)
        keep = torch.isin(label, things)
        score, query, label = score[keep], query[keep], label[keep]

    mask = mask_pred > 0
    inside = mask.flatten(1).to(mask_pred)
    quality = (mask_pred.sigmoid().flatten(1) * inside).sum(1) / (inside.sum(1) + 1e-6)
    result = Instances(tuple(mask_pred.shape[1:]))
    result.pred_masks = mask[query]
    result.pred_boxes = Boxes(mask_boxes(mask)[query])
    result.scores = score * quality[query]
    result.pred_classes = label
    return result


def mask_boxes(masks: Tensor) -> Tensor:
    """Tight boxes of masks.

    Args:
        masks: ``(n, h, w)`` bool.

    Returns:
        ``(n, 4)`` float32 (x0, y0, x1, y1) in pixels, the far edges exclusive; zeros for an
        empty mask.
    """
    ranges = []
    for axis in (1, 2):
        hit = masks.any(axis).to(torch.uint8)
        size = hit.shape[1]
        first, last = hit.argmax(1), size - hit.flip(1).argmax(1)
        ranges.append(torch.stack((first, last), dim=1) * hit.any(1, keepdim=True))
    (x, y) = ranges
    return torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), dim=1).float()
