"""Outlines as polygons, and polygons as pixels.

A polygon is an (n, 2) array of (x, y) in pixels; integer points are pixel centres. Pixels
are filled by ``PIL.ImageDraw.polygon``, as cityscapesscripts does, borders included.
"""

import numpy as np
from PIL import Image, ImageDraw


def _ring(radii: np.ndarray) -> np.ndarray:
    angles = np.arange(len(radii)) * (2 * np.pi / len(radii))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]


def _crescent() -> np.ndarray:
    outer = np.linspace(0.2, 1.8, 17) * np.pi
    tips = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    # The inner arc joins the same tips, seen from a centre that lies to the right.
    centre = np.array([0.75, 0.0])
    radius = np.linalg.norm(tips[0] - centre)
    opening = np.arctan2(tips[0][1], tips[0][0] - centre[0])
    inner = np.linspace(2 * np.pi - opening, opening, 13)
    bite = centre + radius * np.stack([np.cos(inner), np.sin(inner)], axis=1)
    return np.concatenate([tips, bite[1:-1]])


_ARM = 0.33
_OUTLINES = {
    "disk": _ring(np.ones(24)),
    "triangle": _ring(np.ones(3)),
    "square": _ring(np.ones(4)),
    "ell": np.array([(-1, -1), (-0.2, -1), (-0.2, 0.3), (0.8, 0.3), (0.8, 1), (-1, 1)]),
    "cross": np.array(
        [(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)]
        + [(_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)]
    ),
    "bar": np.array([(-1, -0.35), (1, -0.35), (1, 0.35), (-1, 0.35)]),
    "star": _ring(np.where(np.arange(10) % 2, 0.45, 1.0)),
    "crescent": _crescent(),
}


def thing_outline(rng: np.random.Generator, name: str, across: int) -> np.ndarray:
    """Draw one thing's outline, turned at random, with its box's corner at the origin.

    Args:
        rng: source of the angle and of a slight squeeze.
        name: one of the things of ``kinds.THINGS``.
        across: longer side of its box, in pixels.

    Returns:
        integer (n, 2) polygon.
    """
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (_OUTLINES[name] * [1.0, rng.uniform(0.85, 1.0)]) @ turn.T
    points -= points.min(axis=0)
    points *= (across - 1) / points.max()
    return _integer(points)


def blob_outline(
    rng: np.random.Generator, centre: tuple[float, float], radii: tuple[float, float]
) -> np.ndarray:
    """Draw a bumpy ellipse around ``centre`` (x, y) with the given (x, y) radii."""
    bumps = 1 + 0.16 * rng.standard_normal(20)
    return _integer(_ring(np.clip(bumps, 0.6, 1.4)) * radii + np.asarray(centre))


def wavy_line(
    rng: np.random.Generator, start: tuple[float, float], end: tuple[float, float], sway: float
) -> np.ndarray:
    """Join two points by a random walk that strays about ``sway`` pixels, (n, 2)."""
    t = np.linspace(0, 1, 9)[:, None]
    line = np.asarray(start) * (1 - t) + np.asarray(end) * t
    line[1:-1] += rng.normal(0, sway, (7, 2))
    return line


def clip_to_image(polygon: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cut a polygon at the borders of an image of ``size`` (height, width).

    Returns:
        integer (n, 2) polygon inside the image; n may be 0.
    """
    height, width = size
    points = np.asarray(polygon, dtype=np.float64)
    for axis, limit, sign in ((0, 0, 1), (0, width - 1, -1), (1, 0, 1), (1, height - 1, -1)):
        points = _cut(points, axis, limit, sign)
    return _integer(points)


def _cut(points: np.ndarray, axis: int, limit: int, sign: int) -> np.ndarray:
    """Keep the side of one border line where ``sign * (coordinate - limit) >= 0``."""
    inside = sign * (points[:, axis] - limit) >= 0
    if inside.all():
        return points
    kept = []
    for a, b, a_in, b_in in zip(
        points, np.roll(points, -1, axis=0), inside, np.roll(inside, -1), strict=True
    ):
        if a_in:
            kept.append(a)
        if a_in != b_in:
            kept.append(a + (b - a) * (limit - a[axis]) / (b[axis] - a[axis]))
    return np.array(kept).reshape(-1, 2)


def _integer(points: np.ndarray) -> np.ndarray:
    """Round to pixel centres and drop repeated points."""
    points = np.rint(points).astype(np.int64)
    return points[np.any(points != np.roll(points, 1, axis=0), axis=1)]


def fill(polygon: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels of a polygon in an image of ``size`` (height, width), as bool (height, width)."""
    canvas = Image.new("L", (size[1], size[0]))
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in polygon.tolist()], fill=1)
    return np.asarray(canvas, dtype=bool)
