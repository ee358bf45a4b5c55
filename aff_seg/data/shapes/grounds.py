"""The grounds of a shapes scene: sky, a backdrop along the horizon, grass, a road, a wall."""

import numpy as np

from aff_seg.data.shapes.kinds import BUILDING, GRASS, ROAD, SKY, TREES, WALL, Kind
from aff_seg.data.shapes.polygons import blob_outline, wavy_line


def lay_grounds(rng: np.random.Generator, size: tuple[int, int]) -> list[tuple[Kind, np.ndarray]]:
    """Lay out the grounds of an image of ``size`` (height, width).

    Returns:
        (kind, polygon) pairs, back to front; the first covers the image, the others may
        reach beyond it.
    """
    height, width = size
    right, bottom = width - 1, height - 1
    horizon = rng.uniform(0.35, 0.6) * height
    frame = np.array([(0, 0), (right, 0), (right, bottom), (0, bottom)])
    grounds = [(SKY, frame)]
    grounds += _backdrop(rng, size, horizon)
    if rng.random() < 0.5:
        grounds.append((WALL, _wall(rng, size, horizon)))
    grounds.append((GRASS, _meadow(rng, size, horizon)))
    if rng.random() < 0.85:
        grounds.append((ROAD, _road(rng, size, horizon)))
    return grounds


def _backdrop(
    rng: np.random.Generator, size: tuple[int, int], horizon: float
) -> list[tuple[Kind, np.ndarray]]:
    """Houses, trees and gaps from left to right, standing a little below the horizon."""
    height, width = size
    foot = horizon + 0.12 * height
    items = []
    left = -0.05 * width
    while left < width:
        span = rng.uniform(0.12, 0.35) * width
        rise = rng.uniform(0.15, 0.5) * height
        choice = rng.random()
        if choice < 0.45:
            items.append((BUILDING, _house(rng, left, span, horizon - rise, foot)))
        elif choice < 0.85:
            centre = (left + span / 2, horizon - 0.25 * rise)
            items.append((TREES, blob_outline(rng, centre, (0.62 * span, 0.75 * rise))))
        left += rng.uniform(0.8, 1.1) * span
    return [items[i] for i in rng.permutation(len(items))]


def _house(
    rng: np.random.Generator, left: float, span: float, top: float, foot: float
) -> np.ndarray:
    """A block with a flat, a stepped or a gabled roof."""
    right = left + span
    peak = top - rng.uniform(0.1, 0.3) * (foot - top)
    roof = (
        [(left, top), (right, top)],
        [(left, top), (left + span / 2, top), (left + span / 2, peak), (right, peak)],
        [(left, top), (left + span / 2, peak), (right, top)],
    )[rng.integers(3)]
    return np.array([(left, foot), *roof, (right, foot)])


def _wall(rng: np.random.Generator, size: tuple[int, int], horizon: float) -> np.ndarray:
    height, width = size
    start = rng.uniform(-0.1, 0.5) * width
    end = start + rng.uniform(0.3, 0.7) * width
    tall = rng.uniform(0.08, 0.16) * height
    foot = horizon + 0.12 * height
    return np.array([(start, horizon - tall), (end, horizon - tall), (end, foot), (start, foot)])


def _meadow(rng: np.random.Generator, size: tuple[int, int], horizon: float) -> np.ndarray:
    height, width = size
    edge = wavy_line(rng, (-5, horizon), (width + 5, horizon), 0.02 * height)
    edge[:, 1] = np.minimum(edge[:, 1], horizon + 0.1 * height)
    edge = edge[np.argsort(edge[:, 0])]
    return np.concatenate([edge, [(width + 5, height), (-5, height)]])


def _road(rng: np.random.Generator, size: tuple[int, int], horizon: float) -> np.ndarray:
    """A strip that widens from the horizon to the lower border."""
    height, width = size
    far, near = rng.uniform(0.2, 0.8) * width, rng.uniform(0.2, 0.8) * width
    far_half, near_half = rng.uniform(0.03, 0.1) * width, rng.uniform(0.2, 0.45) * width
    top, low, sway = horizon + 2, height + 2, 0.012 * width
    left = wavy_line(rng, (far - far_half, top), (near - near_half, low), sway)
    right = wavy_line(rng, (near + near_half, low), (far + far_half, top), sway)
    return np.concatenate([left, right])
