"""Text on pictures."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

# (x0, y0, x1, y1) in pixels, the far edges exclusive.
Box = tuple[int, int, int, int]

# Pixels of background around a label's letters, and between a label and what it names.
PADDING, GAP = 3, 2


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """A plain font, ``size`` pixels high, with the letters of most European languages."""
    return ImageFont.truetype(
        os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size
    )


@dataclass(frozen=True)
class Label:
    """A text and the place it belongs to.

    Attributes:
        text: one line.
        box: around the place.
        centre: (x, y) of the pixel of the place that is farthest from its edge.
        depth: how far that is, in pixels.
    """

    text: str
    box: Box
    centre: tuple[int, int]
    depth: float

    @classmethod
    def on_mask(cls, text: str, mask: np.ndarray) -> "Label":
        """The label of a mask ``(H, W)``, uint8 0 or 1, not empty."""
        x, y, width, height = cv2.boundingRect(mask)
        part = np.pad(mask[y : y + height, x : x + width], 1)
        depth = cv2.distanceTransform(part, cv2.DIST_L2, 3)[1:-1, 1:-1]
        row, column = np.unravel_index(depth.argmax(), depth.shape)
        box = (x, y, x + width, y + height)
        return cls(text, box, (x + int(column), y + int(row)), float(depth.max()))


def write_labels(picture: np.ndarray, labels: Sequence[Label], size: int) -> np.ndarray:
    """Write labels where they fit: on their place, or beside it where it is small.

    Args:
        picture: ``(H, W, 3)`` uint8, RGB; it is not changed.
        labels: those first in the list have the first choice.
        size: height of the letters in pixels.
    """
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image, "RGBA")
    letters = font(size)
    taken = [label.box for label in labels if _is_small(label, size)]
    for label in labels:
        left, top, right, bottom = draw.textbbox((0, 0), label.text, font=letters)
        width, height = right - left + 2 * PADDING, bottom - top + 2 * PADDING
        box = _place(label, width, height, image.size, taken)
        taken.append(box)
        x, y = box[:2]
        draw.rectangle((x, y, box[2] - 1, box[3] - 1), fill=(0, 0, 0, 170))
        draw.text((x + PADDING - left, y + PADDING - top), label.text, font=letters, fill="white")
    return np.array(image)


def _is_small(label: Label, size: int) -> bool:
    """Whether other labels should keep away from a place, because they would hide it."""
    x0, y0, x1, y1 = label.box
    return max(x1 - x0, y1 - y0) < 5 * size


def _place(label: Label, width: int, height: int, size: tuple[int, int], taken: list[Box]) -> Box:
    """The first spot for a label that is free, else the first of all."""
    spots = [(x, y, x + width, y + height) for x, y in _corners(label, width, height, size)]
    free = (spot for spot in spots if not any(_overlap(spot, other) for other in taken))
    return next(free, spots[0])


def _corners(
    label: Label, width: int, height: int, size: tuple[int, int]
) -> Iterator[tuple[int, int]]:
    """Upper left corners of the spots for a label, best first, inside a picture (W, H)."""
    x, y = label.centre[0] - width // 2, label.centre[1] - height // 2
    x0, y0, x1, y1 = label.box
    inside, below, above = (x, y), (x, y1 + GAP), (x, y0 - GAP - height)
    right, left = (x1 + GAP, y), (x0 - GAP - width, y)
    beside = [below, above, right, left]
    spots = [inside, *beside] if label.depth > 0.6 * height else [*beside, inside]
    far_x, far_y = size[0] - width, size[1] - height
    within = [(x, y) for x, y in spots if 0 <= y <= far_y]
    for x, y in within or [inside]:
        yield min(max(x, 0), max(far_x, 0)), min(max(y, 0), max(far_y, 0))


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
