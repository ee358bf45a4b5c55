"""Panoptic results. Shape legend: Q queries, K classes (index K is "no object"), (h, w) pixels."""

from collections.abc import Collection

import torch
from torch import Tensor

from .strips import MaskStrips, Strip


def confident_queries(mask_cls: Tensor, object_threshold: float) -> Tensor:
    """Indices (n,) of queries whose best class is an object above the threshold."""
    score, label = mask_cls.softmax(-1).max(-1)
    return ((label != mask_cls.shape[1] - 1) & (score > object_threshold)).nonzero().squeeze(1)


class PanopticVotes:
    """Each pixel's best query, gathered strip by strip.

    Args:
        mask_cls: ``(Q, K + 1)`` class logits.
        size: (h, w).
        thing_classes, object_threshold, overlap_threshold: see :func:`panoptic_inference`.
    """

    def __init__(
        self,
        mask_cls: Tensor,
        size: tuple[int, int],
        *,
        thing_classes: Collection[int],
        object_threshold: float,
        overlap_threshold: float,
    ):
        self._kept = confident_queries(mask_cls, object_threshold)
        self._score, self._label = mask_cls[self._kept].softmax(-1).max(-1)
        self._thing_classes = thing_classes
        self._overlap_threshold = overlap_threshold
        # The winner where its own mask covers the pixel, else the number of kept queries.
        self._shown = mask_cls.new_full(size, len(self._kept), dtype=torch.int32)
        # Per kept query: pixels won, pixels of its own mask, pixels of both.
        self._areas = mask_cls.new_zeros(3, len(self._kept), dtype=torch.int64)

    def add(self, strip: Strip) -> None:
        count = len(self._kept)
        if count == 0:
            return
        mask = strip.probability[self._kept]
        covered = mask >= 0.5
        winner = (self._score[:, None, None] * mask).argmax(0)
        shown = winner.masked_fill(~covered.gather(0, winner[None])[0], count)
        self._shown[strip.rows] = shown.int()
        self._areas[0] += torch.bincount(winner.flatten(), minlength=count)
        self._areas[1] += covered.flatten(1).sum(1)
        self._areas[2] += torch.bincount(shown.flatten(), minlength=count + 1)[:count]

    def result(self) -> tuple[Tensor, list[dict]]:
        """As :func:`panoptic_inference` gives."""
        if len(self._kept) == 0:
            return self._shown, []
        won, own, both = self._areas.double()
        share = won / own.clamp(min=1)
        valid = (won > 0) & (own > 0) & (both > 0) & (share >= self._overlap_threshold)
        things = torch.tensor(sorted(self._thing_classes), device=valid.device)
        is_thing = torch.isin(self._label, things.to(self._label))
        # Of each query the one that opens its segment: itself, or the first of its stuff class.
        place = torch.arange(len(valid), device=valid.device)
        stuff = valid & ~is_thing
        merged = stuff[:, None] & stuff & (self._label[:, None] == self._label)
        first = torch.where(stuff, merged.int().argmax(1), place)
        opens = valid & (first == place)
        number = opens.cumsum(0)
        segment_of = torch.where(valid, number[first], 0)
        lookup = torch.nn.functional.pad(segment_of, (0, 1)).int()
        shown = lookup.index_select(0, self._shown.flatten()).view(self._shown.shape)
        columns = (number[opens].tolist(), is_thing[opens].tolist(), self._label[opens].tolist())
        segments = [
            {"id": number, "isthing": thing, "category_id": label}
            for number, thing, label in zip(*columns, strict=True)
        ]
        return shown, segments


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
    strips = MaskStrips(mask_pred)
    votes = PanopticVotes(
        mask_cls,
        strips.size,
        thing_classes=thing_classes,
        object_threshold=object_threshold,
        overlap_threshold=overlap_threshold,
    )
    for strip in strips:
        votes.add(strip)
    return votes.result()
