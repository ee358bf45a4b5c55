"""A figure of where the model kept its tokens."""

import math
from collections.abc import Mapping

import cv2
import numpy as np
from PIL import Image, ImageDraw

from aff_seg.prediction.segmentation import nearest, resize_nearest
from aff_seg.visualization.lettering import font

# A stage works on the tokens that survived the downsampling before it.
STAGES = {"Stage 2": "res3", "Stage 3": "res4", "Stage 4": "res5"}
RED = (255, 0, 0)
# Panels narrower than this are enlarged by a whole factor, as far as the longest side allows.
MIN_WIDTH, MAX_SIDE = 480, 1600
# Shape to which the figure comes close by its number of columns.
ASPECT = 16 / 9
MARGIN = 8


def draw_tokens(
    image: np.ndarray, tokens: Mapping[str, np.ndarray], input_size: tuple[int, int]
) -> np.ndarray:
    """The image, and the image with the tokens of stages 2, 3 and 4 painted red.

    A token at (x, y) covers the 4x4 pixels from (4x, 4y) of the network's input. The title of a
    panel gives the number of tokens inside the image, not in padding, and their share of those
    of stage 1.

    Args:
        image: ``(H, W, 3)`` uint8, RGB, before it was scaled for the network.
        tokens: ``(N, 2)`` whole numbers (x, y), in stride-4 pixels, for "res3", "res4", "res5".
        input_size: (H, W) of the image in the network's input, without padding.

    Returns:
        the figure, uint8, RGB: four panels in reading order, in one, two or four columns.
    """
    picture = _fit(image)
    panels = [(f"Image, {image.shape[1]} x {image.shape[0]}", picture)]
    for stage, level in STAGES.items():
        kept = kept_cells(tokens[level], input_size)
        title = f"{stage}: {kept.sum():,} tokens, {kept.mean():.1%}"
        panels.append((title, paint_tokens(picture, kept, input_size)))
    return _arrange(panels)


def kept_cells(positions: np.ndarray, input_size: tuple[int, int]) -> np.ndarray:
    """Which stride-4 pixels of the image hold a token, ``(ceil(H / 4), ceil(W / 4))`` bool.

    Args:
        positions: ``(N, 2)`` (x, y) of the tokens; those beyond the image do not count.
        input_size: (H, W) of the image in the network's input.
    """
    rows, columns = (-(-side // 4) for side in input_size)
    x, y = positions.T
    inside = (x < columns) & (y < rows)
    kept = np.zeros((rows, columns), dtype=bool)
    kept[y[inside], x[inside]] = True
    return kept


def paint_tokens(picture: np.ndarray, kept: np.ndarray, input_size: tuple[int, int]) -> np.ndarray:
    """A copy of the image, at any size ``(H, W, 3)``, with the kept stride-4 pixels in red."""
    rows, columns = (
        nearest(target, source) // 4
        for target, source in zip(picture.shape[:2], input_size, strict=True)
    )
    painted = picture.copy()
    painted[kept[rows[:, None], columns]] = RED
    return painted


def _fit(image: np.ndarray) -> np.ndarray:
    """Scale the image to the size of a panel."""
    height, width = image.shape[:2]
    longest = max(height, width)
    if longest > MAX_SIDE:
        size = [max(1, round(side * MAX_SIDE / longest)) for side in (width, height)]
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    zoom = min(-(-MIN_WIDTH // width), MAX_SIDE // longest)
    return resize_nearest(image, (zoom * height, zoom * width))


def _arrange(panels: list[tuple[str, np.ndarray]]) -> np.ndarray:
    """Lay titled pictures of one size out on white."""
    height, width = panels[0][1].shape[:2]
    title_size = min(32, max(16, width // 45))
    title_height = title_size * 3 // 2
    letters = font(title_size)
    cell_width = max(width, *(math.ceil(letters.getlength(title)) for title, _ in panels)) + MARGIN
    cell_height = height + title_height + MARGIN
    columns = min((1, 2, 4), key=lambda n: abs(math.log(n * n * width / height / 4 / ASPECT)))
    rows = len(panels) // columns
    note = "Red pixels: remaining tokens, and their share of stage 1"
    figure_width = max(columns * cell_width, math.ceil(letters.getlength(note)) + MARGIN) + MARGIN
    figure = Image.new("RGB", (figure_width, rows * cell_height + title_height), "white")
    draw = ImageDraw.Draw(figure)
    for i, (title, picture) in enumerate(panels):
        x, y = MARGIN + i % columns * cell_width, i // columns * cell_height
        draw.text((x, y + title_height / 2), title, font=letters, fill="black", anchor="lm")
        figure.paste(Image.fromarray(picture), (x, y + title_height))
    y = rows * cell_height + title_height / 2 - MARGIN / 2
    draw.text((MARGIN, y), note, font=letters, fill="black", anchor="lm")
    return np.array(figure)
