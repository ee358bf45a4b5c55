"""The segments of a result one by one, and as JSON.

Maps of a result may be smaller than the image, because big images would need much memory: they
are scaled to it here, by nearest neighbour, one mask at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask
from detectron2.data import Metadata
from detectron2.structures import Instances
from torch import Tensor

from aff_seg.data.metadata import class_attribute


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


def panoptic_segments(
    panoptic: tuple[Tensor, list[dict]], size: tuple[int, int]
) -> Iterator[Segment]:
    """The segments of a ``panoptic_seg`` result as masks of ``size``, (H, W)."""
    ids, infos = panoptic
    ids = resize_nearest(ids.cpu().numpy(), size)
    for info in infos:
        yield Segment(ids == info["id"], info["category_id"], info["isthing"], id=info["id"])


def instance_segments(instances: Instances, size: tuple[int, int]) -> Iterator[Segment]:
    """The instances that have a pixel, best first, as masks of ``size``, (H, W)."""
    instances = instances[instances.scores.argsort(descending=True)].to("cpu")
    for mask, score, category_id in zip(
        instances.pred_masks.numpy(),
        instances.scores.tolist(),
        instances.pred_classes.tolist(),
        strict=True,
    ):
        if mask.any():
            yield Segment(resize_nearest(mask, size), category_id, True, score=score)


def semantic_segments(scores: Tensor, size: tuple[int, int]) -> Iterator[Segment]:
    """Each class that wins a pixel of ``(K, h, w)`` scores, as masks of ``size``, (H, W)."""
    classes = resize_nearest(scores.argmax(0).cpu().numpy(), size)
    for category_id in np.unique(classes).tolist():
        yield Segment(classes == category_id, category_id, False)


def class_name(metadata: Metadata, category_id: int, is_thing: bool) -> str:
    """The name of a class, or ``class <index>`` where the dataset gives none."""
    return class_attribute(metadata, "classes", category_id, is_thing) or f"class {category_id}"


def segments_to_json(
    result: dict[str, Any], metadata: Metadata, size: tuple[int, int]
) -> dict[str, Any]:
    """What the model found, as plain values for ``json.dump``.

    Every segment is a dict with

    - ``category_id``: index of the class as the model counts, from 0, and ``category``: its name;
    - ``area``: its number of pixels;
    - ``bbox``: ``[x, y, width, height]`` in pixels, tight;
    - ``segmentation``: its mask as COCO's compressed RLE, ``{"size": [height, width],
      "counts": text}``, which ``pycocotools.mask.decode`` reads.

    Args:
        result: of one image, as the model gives it.
        metadata: of the dataset, for the names.
        size: (H, W) of the image; all numbers are in its pixels.

    Returns:
        ``height``, ``width`` and lists of segments, as far as the result has them:
        ``panoptic``, each also with ``id`` and ``isthing``, no two sharing a pixel;
        ``instances``, each also with ``score``, best first, those without any pixel left out;
        ``semantic``, one for each class found, where there is nothing else.
    """
    found: dict[str, Any] = {"height": size[0], "width": size[1]}
    if "panoptic_seg" in result:
        found["panoptic"] = [
            {"id": segment.id, "isthing": segment.is_thing, **_describe(segment, metadata)}
            for segment in panoptic_segments(result["panoptic_seg"], size)
        ]
    if "instances" in result:
        found["instances"] = [
            {"score": segment.score, **_describe(segment, metadata)}
            for segment in instance_segments(result["instances"], size)
        ]
    if not result.keys() & {"panoptic_seg", "instances"}:
        found["semantic"] = [
            _describe(segment, metadata) for segment in semantic_segments(result["sem_seg"], size)
        ]
    return found


def _describe(segment: Segment, metadata: Metadata) -> dict[str, Any]:
    rle = pycocotools.mask.encode(np.asfortranarray(segment.mask, dtype=np.uint8))
    return {
        "category_id": segment.category_id,
        "category": class_name(metadata, segment.category_id, segment.is_thing),
        "area": int(pycocotools.mask.area(rle)),
        "bbox": [int(x) for x in pycocotools.mask.toBbox(rle)],
        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
    }


def nearest(target: int, source: int) -> np.ndarray:
    """Which of ``source`` pixels in a row lies under each of ``target`` pixels, ``(target,)``."""
    return ((np.arange(target) + 0.5) * source / target).astype(np.int64)


def resize_nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale ``(h, w, ...)`` to ``(H, W, ...)`` by nearest neighbour; the same array where equal."""
    if values.shape[:2] == size:
        return values
    rows, columns = (nearest(*pair) for pair in zip(size, values.shape[:2], strict=True))
    return values[rows[:, None], columns]
