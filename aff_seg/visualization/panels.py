"""Figures of titled pictures of one size, side by side."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from aff_seg.prediction.segmentation import nearest, resize_nearest
from aff_seg.visualization.lettering import font

# Panels narrower than this are enlarged by a whole factor, as far as the longest side allows.
MIN_WIDTH, MAX_SIDE = 480, 1600
# Shape to which a figure comes close by its number of columns.
ASPECT = 16 / 9
MARGIN = 8

Panel = tuple[str, np.ndarray]


def background(image: np.ndarray, *, blurred: bool = False) -> np.ndarray:
    """The image at the size of a panel, ``(H, W, 3)`` uint8, blurred if wanted."""
    height, width = image.shape[:2]
    longest = max(height, width)
    if longest > MAX_SIDE:
        size = [max(1, round(side * MAX_SIDE / longest)) for side in (width, height)]
        picture = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    else:
        zoom = min(-(-MIN_WIDTH // width), MAX_SIDE // longest)
        picture = resize_nearest(image, (zoom * height, zoom * width))
    if blurred:
        return cv2.GaussianBlur(picture, (0, 0), sigmaX=max(picture.shape[:2]) / 80)
    return picture


def arrange(
    panels: Sequence[Panel],
    note: str = "",
    *,
    scale: np.ndarray | None = None,
    columns: int | None = None,
) -> np.ndarray:
    """Lay titled pictures of one size out on white.

    Args:
        panels: (title, picture) in reading order.
        note: a line below.
        scale: ``(n, 3)`` uint8, colours from 0 to 1, shown as a bar after the note.
        columns: by default as many as bring the figure near 16:9.

    Returns:
        the figure, uint8, RGB.
    """
    height, width = panels[0][1].shape[:2]
    title_size = min(32, max(16, width // 45))
    title_height = title_size * 3 // 2
    letters = font(title_size)
    cell_width = max(width, *(math.ceil(letters.getlength(title)) for title, _ in panels)) + MARGIN
    cell_height = height + title_height + MARGIN
    columns = columns or _columns(len(panels), width / height)
    rows = len(panels) // columns
    note_width = math.ceil(letters.getlength(note)) + MARGIN
    if scale is not None:
        bar = _bar(scale, title_size)
        note_width += bar.width + MARGIN
    figure_width = max(columns * cell_width, note_width) + MARGIN
    figure = Image.new("RGB", (figure_width, rows * cell_height + title_height), "white")
    draw = ImageDraw.Draw(figure)
    for i, (title, picture) in enumerate(panels):
        x, y = MARGIN + i % columns * cell_width, i // columns * cell_height
        draw.text((x, y + title_height / 2), title, font=letters, fill="black", anchor="lm")
        figure.paste(Image.fromarray(picture), (x, y + title_height))
    y = rows * cell_height + title_height / 2 - MARGIN / 2
    draw.text((MARGIN, y), note, font=letters, fill="black", anchor="lm")
    if scale is not None:
        figure.paste(bar, (note_width - bar.width, round(y - bar.height / 2)))
    return np.array(figure)


def _bar(colours: np.ndarray, height: int) -> Image.Image:
    """A bar of colours between the numbers 0 and 1."""
    letters, length = font(height), 10 * height
    bar = Image.new("RGB", (length + 2 * height, height), "white")
    shown = colours[nearest(length, len(colours))]
    bar.paste(Image.fromarray(np.repeat(shown[None], height, axis=0)), (height, 0))
    draw = ImageDraw.Draw(bar)
    for number, x in (("0", height / 2), ("1", length + 1.5 * height)):
        draw.text((x, height / 2), number, font=letters, fill="black", anchor="mm")
    return bar


def _columns(count: int, aspect: float) -> int:
    """How many of ``count`` panels stand side by side in rows of equal length."""
    full = [n for n in range(1, count + 1) if count % n == 0]
    return min(full, key=lambda n: abs(math.log(n * n * aspect / count / ASPECT)))
