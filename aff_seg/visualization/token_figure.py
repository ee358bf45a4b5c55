"""Figures of what the backbone did: tokens kept, their clusters, their importance."""

import colorsys
from collections.abc import Callable

import cv2
import numpy as np

from aff_seg.errors import UserError
from aff_seg.prediction.segmentation import Segmentation, Size, nearest
from aff_seg.visualization.panels import arrange, background

# A stage works on the tokens that survived the downsampling before it.
STAGES = {"Stage 1": "res2", "Stage 2": "res3", "Stage 3": "res4", "Stage 4": "res5"}
RED = (255, 0, 0)
# How much of a picture is hidden by the colours of clusters or importance.
OPACITY = 0.6
# Colours of clusters, of which neighbours on the path differ much.
COLOURS = np.array(
    [
        [round(255 * part) for part in colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.8, 1 - i % 3 / 5)]
        for i in range(97)
    ],
    dtype=np.uint8,
)
# Colours of importance 0 to 1, from blue to red.
SHADES = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_TURBO)[:, 0, ::-1]


def draw_tokens(
    image: np.ndarray, segmentation: Segmentation, *, blurred: bool = False
) -> np.ndarray:
    """The image, and the image with the tokens of stages 2, 3 and 4 painted red.

    A token at (x, y) covers the 4x4 pixels from (4x, 4y) of the network's input. The title of a
    panel gives the number of tokens inside the image, not in padding, and their share of those
    of stage 1.

    Args:
        image: ``(H, W, 3)`` uint8, RGB, before it was scaled for the network.
        segmentation: of the image, with tokens.
        blurred: paint on a blurred copy of the image, on which they stand out.

    Returns:
        the figure, uint8, RGB: four panels in reading order.

    Raises:
        UserError: there are no tokens.
    """
    _check_tokens(segmentation)
    size = segmentation.input_size
    picture = background(image, blurred=blurred)
    panels = [(f"Image, {image.shape[1]} x {image.shape[0]}", background(image))]
    for stage, level in list(STAGES.items())[1:]:
        inside, token = cells(segmentation.tokens[level], size)
        kept = token >= 0
        painted = picture.copy()
        painted[spread(kept, picture.shape[:2], size)] = RED
        panels.append((f"{stage}: {inside.sum():,} tokens, {kept.mean():.1%}", painted))
    return arrange(panels, "Red pixels: remaining tokens, and their share of stage 1")


def draw_clusters(
    image: np.ndarray, segmentation: Segmentation, *, blurred: bool = False
) -> np.ndarray:
    """The clusters of the four stages on the image in grey: tokens of a cluster have one colour.

    Args:
        image, segmentation, blurred: see :func:`draw_tokens`.

    Returns:
        the figure, uint8, RGB: four panels in reading order.
    """
    _check_tokens(segmentation)
    picture = _grey(background(image, blurred=blurred))
    panels = []
    for stage, level in STAGES.items():
        positions, length = segmentation.tokens[level], segmentation.cluster_size[level]
        _, token = cells(positions, segmentation.input_size)
        colours = COLOURS[np.arange(len(positions)) // length % len(COLOURS)]
        panel = _paint(picture, token, colours, segmentation.input_size)
        count = -(-len(positions) // length)
        clusters = "cluster" if count == 1 else "clusters"
        panels.append((f"{stage}: {count:,} {clusters} of {length}", panel))
    return arrange(panels, "Tokens of one colour: a cluster, whose tokens lie side by side")


def draw_importance(
    image: np.ndarray, segmentation: Segmentation, *, blurred: bool = False
) -> np.ndarray:
    """The image, and in grey with the importance of tokens at the stages that choose among them.

    Args:
        image, segmentation, blurred: see :func:`draw_tokens`.

    Returns:
        the figure, uint8, RGB: four panels in reading order; blue is 0, red is 1.
    """
    _check_tokens(segmentation)
    picture = _grey(background(image, blurred=blurred))
    panels = [(f"Image, {image.shape[1]} x {image.shape[0]}", background(image))]
    for stage, level in list(STAGES.items())[:-1]:
        importance = segmentation.importance[level]
        inside, token = cells(segmentation.tokens[level], segmentation.input_size)
        colours = SHADES[np.round(255 * importance).astype(np.uint8)]
        panel = _paint(picture, token, colours, segmentation.input_size)
        panels.append((f"{stage}: importance {importance[inside].mean():.2f} on average", panel))
    mixed = np.round((1 - OPACITY) * 128 + OPACITY * SHADES).astype(np.uint8)
    return arrange(panels, "Importance of the tokens of a stage:", scale=mixed)


FIGURES: dict[str, Callable[..., np.ndarray]] = {
    "tokens": draw_tokens,
    "clusters": draw_clusters,
    "importance": draw_importance,
}


def cells(positions: np.ndarray, input_size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens lie in the image, not in its padding, and a map of them.

    Args:
        positions: ``(N, 2)`` (x, y) of the tokens in stride-4 pixels.
        input_size: (H, W) of the image in the network's input.

    Returns:
        ``(N,)`` bool; ``(ceil(H / 4), ceil(W / 4))`` int64, the token of each stride-4 pixel, -1
        for none.
    """
    rows, columns = (-(-side // 4) for side in input_size)
    x, y = positions.T
    inside = (x < columns) & (y < rows)
    token = np.full((rows, columns), -1)
    token[y[inside], x[inside]] = np.flatnonzero(inside)
    return inside, token


def spread(token: np.ndarray, size: Size, input_size: Size) -> np.ndarray:
    """A map of stride-4 pixels at the size of a picture of the image, (H, W)."""
    rows, columns = (
        nearest(target, source) // 4 for target, source in zip(size, input_size, strict=True)
    )
    return token[rows[:, None], columns]


def _check_tokens(segmentation: Segmentation) -> None:
    if segmentation.tokens is None:
        raise UserError("This result is without tokens; segment the image with tokens=True.")


def _grey(picture: np.ndarray) -> np.ndarray:
    """The picture without its colours, which would mix with those laid over it."""
    return cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _paint(
    picture: np.ndarray, token: np.ndarray, colours: np.ndarray, input_size: Size
) -> np.ndarray:
    """Lay the colours ``(N, 3)`` of tokens over a picture, where there is a token."""
    shown = spread(token, picture.shape[:2], input_size)
    mixed = (1 - OPACITY) * picture + OPACITY * colours[shown]
    return np.where((shown >= 0)[..., None], mixed.round().astype(np.uint8), picture)
