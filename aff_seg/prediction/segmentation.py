"""What was found in one image.

Shape legend: (H, W) pixels of the image, (h, w) those of the model's result, which are fewer in big
images, n instances.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor

Size = tuple[int, int]


@dataclass(frozen=True)
class Segment:
    """Some pixels of an image and what they are.

    Attributes:
        mask: ``(H, W)`` bool, never empty.
        category_id: index of the class as the model counts, from 0.
        is_thing: whether it is one object, not all there is of a class.
        id: number in the panoptic map, from 1; None elsewhere.
        score: confidence of an instance, 0 to 1; None elsewhere.
    """

    mask: np.ndarray
    category_id: int
    is_thing: bool
    id: int | None = None
    score: float | None = None


@dataclass(frozen=True)
class PackedMask:
    """The pixels of a mask inside its box, a bit for each.

    Attributes:
        size: (h, w) of the whole.
        box: (left, top, right, bottom), the latter two exclusive; of an empty mask all 0.
        bits: uint8, as :func:`numpy.packbits` makes them.
    """

    size: Size
    box: tuple[int, int, int, int]
    bits: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray) -> "PackedMask":
        """Pack a bool mask ``(h, w)``."""
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows) == 0:
            return cls(mask.shape, (0, 0, 0, 0), np.zeros(0, dtype=np.uint8))
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        box = (int(left), int(top), int(right), int(bottom))
        return cls(mask.shape, box, np.packbits(mask[top:bottom, left:right]))

    @classmethod
    def union(cls, masks: Sequence["PackedMask"]) -> "PackedMask":
        """What any of some masks of one size covers."""
        if len(masks) == 1:
            return masks[0]
        boxes = np.array([mask.box for mask in masks if len(mask.bits)]).reshape(-1, 4)
        if len(boxes) == 0:
            return masks[0]
        left, top = boxes[:, :2].min(0).tolist()
        right, bottom = boxes[:, 2:].max(0).tolist()
        together = np.zeros((bottom - top, right - left), dtype=bool)
        for mask in masks:
            mask.add_to(together, (top, left))
        return cls(masks[0].size, (left, top, right, bottom), np.packbits(together))

    def moved(self, offset: Size, size: Size) -> "PackedMask":
        """The same in an image of ``size``, in which its own lies at (top, left) ``offset``."""
        if len(self.bits) == 0:
            return PackedMask(size, self.box, self.bits)
        y, x = offset
        left, top, right, bottom = self.box
        return PackedMask(size, (left + x, top + y, right + x, bottom + y), self.bits)

    def add_to(self, mask: np.ndarray, corner: Size = (0, 0)) -> None:
        """Set the pixels in a bool array, whose (top, left) corner lies at ``corner``."""
        left, top, right, bottom = self.box
        height, width = bottom - top, right - left
        inside = np.unpackbits(self.bits, count=height * width).view(bool)
        y, x = top - corner[0], left - corner[1]
        mask[y : y + height, x : x + width] |= inside.reshape(height, width)

    def unpack(self) -> np.ndarray:
        """The mask, ``(h, w)`` bool."""
        mask = np.zeros(self.size, dtype=bool)
        self.add_to(mask)
        return mask


@dataclass(frozen=True)
class Found:
    """An instance: its mask, score (0 to 1) and class as the model counts."""

    mask: PackedMask
    score: float
    category_id: int


@dataclass(frozen=True)
class Segmentation:
    """What a model found in an image.

    What the model does not infer is None. Everything public is at the size of the image; big images
    have smaller maps inside, which are scaled by nearest neighbour when asked for, one by one
    where that is possible.

    Attributes:
        size: (H, W) of the image.
        ids: ``(h, w)`` int32, what ``panoptic`` is scaled from.
        segments: of the panoptic map: ``id`` (from 1), ``isthing``, ``category_id``.
        labels: ``(h, w)`` int32, what ``semantic`` is scaled from.
        found: instances, best first; see also ``masks``, ``boxes``, ``classes`` and ``scores``.
        tokens: per level, "res2" to "res5", ``(N, 2)`` int64 positions (x, y) in stride-4 pixels
            of the network's input; some may lie in its padding. Only if asked for.
        importance: per level but the last, ``(N,)`` float32 in (0, 1), that of the tokens.
        cluster_size: per level, of how many tokens in a row each cluster is.
        input_size: (H, W) in pixels that the image had in the network's input, without padding.
    """

    size: Size
    ids: np.ndarray | None = None
    segments: list[dict] | None = None
    labels: np.ndarray | None = None
    found: list[Found] | None = None
    tokens: Mapping[str, np.ndarray] | None = None
    importance: Mapping[str, np.ndarray] | None = None
    cluster_size: Mapping[str, int] | None = None
    input_size: Size | None = None

    @cached_property
    def panoptic(self) -> np.ndarray | None:
        """Number of the segment of each pixel, ``(H, W)`` int32, 0 for none."""
        return None if self.ids is None else resize_nearest(self.ids, self.size)

    @cached_property
    def semantic(self) -> np.ndarray | None:
        """Class of each pixel, ``(H, W)`` int32, -1 where none is sure enough."""
        return None if self.labels is None else resize_nearest(self.labels, self.size)

    @property
    def masks(self) -> np.ndarray | None:
        """Masks of the instances, ``(n, H, W)`` bool: n times the pixels of the image."""
        if self.found is None:
            return None
        masks = np.zeros((len(self.found), *self.size), dtype=bool)
        for mask, one in zip(masks, self.found, strict=True):
            mask[:] = resize_nearest(one.mask.unpack(), self.size)
        return masks

    @property
    def boxes(self) -> np.ndarray | None:
        """Boxes of the instances, ``(n, 4)`` float32: left, top, right, bottom in pixels.

        They fit the masks tightly, the latter two edges exclusive.
        """
        if self.found is None:
            return None
        boxes = np.zeros((len(self.found), 4), dtype=np.float32)
        for box, one in zip(boxes, self.found, strict=True):
            for axis, (target, source) in enumerate(zip(self.size, one.mask.size, strict=True)):
                # (top, bottom), then (left, right): where the pixels of the mask are shown.
                edges = one.mask.box[1 - axis :: 2]
                box[1 - axis :: 2] = np.searchsorted(nearest(target, source), edges)
        return boxes

    @property
    def classes(self) -> np.ndarray | None:
        """Classes of the instances, ``(n,)`` int64."""
        if self.found is None:
            return None
        return np.array([one.category_id for one in self.found], dtype=np.int64)

    @property
    def scores(self) -> np.ndarray | None:
        """Confidence of the instances, ``(n,)`` float32, 0 to 1, falling."""
        if self.found is None:
            return None
        return np.array([one.score for one in self.found], dtype=np.float32)

    def at_least(self, score: float) -> "Segmentation":
        """The same without the instances of lower scores."""
        if self.found is None:
            return self
        return replace(self, found=[one for one in self.found if one.score >= score])

    def panoptic_segments(self) -> Iterator[Segment]:
        """The segments of the panoptic map, one after the other."""
        for info in self.segments:
            mask = self.panoptic == info["id"]
            yield Segment(mask, info["category_id"], info["isthing"], id=info["id"])

    def instance_segments(self, least: float = 0.0) -> Iterator[Segment]:
        """The instances with a pixel and a score of at least ``least``, best first."""
        for one in self.found:
            if one.score >= least and len(one.mask.bits):
                mask = resize_nearest(one.mask.unpack(), self.size)
                yield Segment(mask, one.category_id, True, score=one.score)

    def semantic_segments(self) -> Iterator[Segment]:
        """Each class that has a pixel."""
        classes = np.unique(self.labels)
        for category_id in classes[classes >= 0].tolist():
            yield Segment(self.semantic == category_id, category_id, False)


def segmentation_of(
    output: dict[str, Any], size: Size, *, least: float = 0.0, **rest: Any
) -> Segmentation:
    """Take over what a model gives for one image.

    Args:
        output: ``sem_seg``, ``panoptic_seg`` and ``instances``, as far as there are.
        size: (H, W) of the image.
        least: score of an instance, and of the class of a pixel, below which it is left out.
        rest: other attributes of :class:`Segmentation`.
    """
    ids = segments = labels = found = None
    if "panoptic_seg" in output:
        ids, segments = output["panoptic_seg"]
        ids = ids.cpu().numpy()
    if "sem_seg" in output:
        labels = class_map(output["sem_seg"], least)
    if "instances" in output:
        found = pack_instances(output["instances"], least)
    return Segmentation(size, ids, segments, labels, found, **rest)


def class_map(scores: Tensor, least: float = 0.0) -> np.ndarray:
    """The best class of each pixel, ``(h, w)`` int32, from ``(K, h, w)`` scores.

    It is -1 where its score is lower than ``least``. Scores are sums over queries, and some exceed
    1 by a little.
    """
    highest, labels = scores.max(0)
    return torch.where(highest < least, -1, labels).int().cpu().numpy()


def pack_instances(instances: Instances, least: float = 0.0) -> list[Found]:
    """Detectron2's instances with a score of at least ``least``, best first."""
    order = instances.scores.argsort(descending=True, stable=True)
    order = order[instances.scores[order].double() >= least]
    instances = instances[order].to("cpu")
    return [
        Found(PackedMask.of(mask), score, category_id)
        for mask, score, category_id in zip(
            instances.pred_masks.numpy(),
            instances.scores.tolist(),
            instances.pred_classes.tolist(),
            strict=True,
        )
    ]


def nearest(target: int, source: int) -> np.ndarray:
    """Which of ``source`` pixels in a row lies under each of ``target`` pixels, ``(target,)``."""
    return ((np.arange(target) + 0.5) * source / target).astype(np.int64)


def resize_nearest(values: np.ndarray, size: Size) -> np.ndarray:
    """Scale ``(h, w, ...)`` to ``(H, W, ...)`` by nearest neighbour; the same array where equal."""
    if values.shape[:2] == size:
        return values
    rows, columns = (nearest(*pair) for pair in zip(size, values.shape[:2], strict=True))
    return values[rows[:, None], columns]
