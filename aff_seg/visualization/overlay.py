"""Pictures of what the model found: segments laid over the image.

Detectron2's ``Visualizer`` is not used, because it fills the holes of things, needs a float
image for every stuff segment with a hole (200 MB in a 12 megapixel photo), and picks colours at
random. The same result gives the same picture here.
"""

import colorsys
from collections import defaultdict
from collections.abc import Iterator

import cv2
import numpy as np
from detectron2.data import Metadata

from aff_seg.data.metadata import class_attribute, class_name
from aff_seg.prediction.segmentation import Segment, Segmentation, resize_nearest
from aff_seg.visualization.lettering import Label, write_labels

# Images whose longer side is shorter than this are enlarged by a whole factor.
MIN_SIDE = 640
# Instances of an instance-only result are drawn from this score on, unless told otherwise.
MIN_SCORE = 0.5
OPACITY = 0.55
EDGE_COLOUR = (255, 255, 240)
# How far the colours of neighbours of one class, one after the other, are moved to white.
TINTS = (0.0, 0.45, 0.2, 0.6)


def draw_segments(
    image: np.ndarray,
    segmentation: Segmentation,
    metadata: Metadata,
    *,
    least: float = MIN_SCORE,
) -> np.ndarray:
    """Lay the segments over an image, with their names.

    Of a result with several parts the panoptic one is drawn, else the instances with a score of
    at least ``least``, else the semantic one.

    Args:
        image: ``(H, W, 3)`` uint8, RGB.
        segmentation: of the image.
        metadata: of the dataset: names and, where it has them, colours.
        least: least score of an instance that is drawn.

    Returns:
        ``(k H, k W, 3)`` uint8, RGB, with k a whole number: 1 unless the image is small.
    """
    size = image.shape[:2]
    zoom = max(1, -(-MIN_SIDE // max(size)))
    canvas = resize_nearest(image, (zoom * size[0], zoom * size[1])).copy()
    labels = []
    seen: dict[int, int] = defaultdict(int)
    for segment in _segments_to_draw(segmentation, least):
        tint = TINTS[seen[segment.category_id] % len(TINTS)] if segment.is_thing else 0.0
        seen[segment.category_id] += 1
        colour = _tinted(class_colour(metadata, segment.category_id, segment.is_thing), tint)
        mask = resize_nearest(segment.mask, canvas.shape[:2]).astype(np.uint8)
        _fill(canvas, mask, colour)
        labels.append(Label.on_mask(_label(segment, metadata), mask))
    labels.sort(key=lambda label: label.depth)
    return write_labels(canvas, labels, min(64, max(12, max(canvas.shape) // 55)))


def class_colour(metadata: Metadata, category_id: int, is_thing: bool) -> tuple[int, int, int]:
    """The dataset's RGB colour of a class, or one of our own where it has none."""
    colour = class_attribute(metadata, "colors", category_id, is_thing)
    if colour is not None:
        return tuple(colour)
    # Golden ratio steps around the circle of hues keep neighbours far apart.
    hue = category_id * 0.618034 % 1
    value = (1.0, 0.8, 0.6)[category_id % 3]
    return tuple(round(255 * x) for x in colorsys.hsv_to_rgb(hue, 0.75, value))


def _segments_to_draw(segmentation: Segmentation, least: float) -> Iterator[Segment]:
    if segmentation.segments is not None:
        return segmentation.panoptic_segments()
    if segmentation.found is not None:
        return segmentation.instance_segments(least)
    return segmentation.semantic_segments()


def _label(segment: Segment, metadata: Metadata) -> str:
    name = class_name(metadata, segment.category_id, segment.is_thing)
    return name if segment.score is None else f"{name} {segment.score:.0%}"


def _tinted(colour: tuple[int, int, int], tint: float) -> tuple[int, int, int]:
    return tuple(round(x + (255 - x) * tint) for x in colour)


def _fill(canvas: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Paint a mask on the canvas, half transparent, with a bright edge."""
    inside = mask.astype(bool)
    old = np.arange(256)[:, None]
    new = ((1 - OPACITY) * old + OPACITY * np.array(colour)).round().astype(np.uint8)
    for channel in range(3):
        canvas[inside, channel] = new[canvas[inside, channel], channel]
    outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    width = 1 + max(canvas.shape) // 1500
    cv2.drawContours(canvas, outlines, -1, EDGE_COLOUR, thickness=width)
