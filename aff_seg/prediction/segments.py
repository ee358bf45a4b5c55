"""Segments as JSON."""

from typing import Any

import numpy as np
import pycocotools.mask
from detectron2.data import Metadata

from aff_seg.data.metadata import class_name
from aff_seg.prediction.segmentation import Segment, Segmentation


def segments_to_json(segmentation: Segmentation, metadata: Metadata) -> dict[str, Any]:
    """What the model found, as plain values for ``json.dump``.

    Every segment is a dict with

    - ``category_id``: index of the class as the model counts, from 0, and ``category``: its name;
    - ``area``: its number of pixels;
    - ``bbox``: ``[x, y, width, height]`` in pixels, tight;
    - ``segmentation``: its mask as COCO's compressed RLE, ``{"size": [height, width],
      "counts": text}``, which ``pycocotools.mask.decode`` reads.

    Args:
        segmentation: of one image.
        metadata: of the dataset, for the names.

    Returns:
        ``height``, ``width`` and lists of segments, as far as there are results:
        ``panoptic``, each also with ``id`` and ``isthing``, no two sharing a pixel;
        ``instances``, each also with ``score``, best first, those without any pixel left out;
        ``semantic``, one for each class found, where there is nothing else.
    """
    height, width = segmentation.size
    told: dict[str, Any] = {"height": height, "width": width}
    if segmentation.segments is not None:
        told["panoptic"] = [
            {"id": segment.id, "isthing": segment.is_thing, **_describe(segment, metadata)}
            for segment in segmentation.panoptic_segments()
        ]
    if segmentation.found is not None:
        told["instances"] = [
            {"score": segment.score, **_describe(segment, metadata)}
            for segment in segmentation.instance_segments()
        ]
    if not told.keys() & {"panoptic", "instances"}:
        told["semantic"] = [
            _describe(segment, metadata) for segment in segmentation.semantic_segments()
        ]
    return told


def _describe(segment: Segment, metadata: Metadata) -> dict[str, Any]:
    rle = pycocotools.mask.encode(np.asfortranarray(segment.mask, dtype=np.uint8))
    return {
        "category_id": segment.category_id,
        "category": class_name(metadata, segment.category_id, segment.is_thing),
        "area": int(pycocotools.mask.area(rle)),
        "bbox": [int(x) for x in pycocotools.mask.toBbox(rle)],
        "segmentation": {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")},
    }
