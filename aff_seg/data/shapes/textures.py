"""Surfaces, light and noise of a shapes picture.

A pattern is a float32 (h, w) map in 0-1 that mixes two colours. Colours are RGB in 0-1.
"""

import colorsys
from collections.abc import Callable

import cv2
import numpy as np

from aff_seg.data.shapes.kinds import Kind

Pattern = Callable[[np.random.Generator, int, int], np.ndarray]


def _smooth(rng: np.random.Generator, h: int, w: int, cell_h: float, cell_w: float) -> np.ndarray:
    """Random values on a grid of cells of the given size in pixels, interpolated."""
    grid = rng.random((int(h / cell_h) + 2, int(w / cell_w) + 2), dtype=np.float32)
    return cv2.resize(grid, (w, h), interpolation=cv2.INTER_LINEAR)


def _ramp(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """Distance in pixels along a random direction, (h, w)."""
    angle = rng.uniform(0, 2 * np.pi)
    x = np.arange(w, dtype=np.float32) * np.float32(np.cos(angle))
    y = np.arange(h, dtype=np.float32) * np.float32(np.sin(angle))
    return y[:, None] + x[None, :]


def _plain(rng, h, w):
    return 0.5 * _smooth(rng, h, w, 12, 12)


def _stripes(rng, h, w):
    return ((_ramp(rng, h, w) / rng.uniform(3, 8)) % 2 < 1).astype(np.float32)


def _checks(rng, h, w):
    cell = rng.uniform(4, 9)
    first = np.arange(h)[:, None] // cell
    second = np.arange(w)[None, :] // cell
    return ((first + second) % 2).astype(np.float32)


def _dots(rng, h, w):
    pitch = rng.uniform(6, 11)
    y = (np.arange(h, dtype=np.float32)[:, None] % pitch) - pitch / 2
    x = (np.arange(w, dtype=np.float32)[None, :] % pitch) - pitch / 2
    return (x * x + y * y < (0.32 * pitch) ** 2).astype(np.float32)


def _clouds(rng, h, w):
    return 0.6 * _smooth(rng, h, w, 24, 60) + 0.4 * _smooth(rng, h, w, 9, 20)


def _windows(rng, h, w):
    pitch_y, pitch_x = rng.uniform(9, 14), rng.uniform(7, 12)
    y = np.arange(h)[:, None] % pitch_y / pitch_y
    x = np.arange(w)[None, :] % pitch_x / pitch_x
    return ((y > 0.35) & (x > 0.45)).astype(np.float32)


def _leaves(rng, h, w):
    return 0.6 * _smooth(rng, h, w, 4, 4) + 0.4 * _smooth(rng, h, w, 12, 12)


def _asphalt(rng, h, w):
    return 0.5 * rng.random((h, w), dtype=np.float32) + 0.5 * _smooth(rng, h, w, 30, 30)


def _grass(rng, h, w):
    return 0.7 * _smooth(rng, h, w, 7, 1.5) + 0.3 * _smooth(rng, h, w, 20, 20)


def _planks(rng, h, w):
    pitch = rng.uniform(6, 9)
    seam = np.broadcast_to(np.arange(h)[:, None] % pitch < 1.5, (h, w))
    return np.where(seam, 1.0, 0.4 * _smooth(rng, h, w, 2, 25)).astype(np.float32)


# Things wear any of these, whatever their kind.
_COATS: tuple[Pattern, ...] = (_plain, _plain, _stripes, _checks, _dots)
_GROUND_PATTERNS: dict[str, Pattern] = {
    "clouds": _clouds,
    "windows": _windows,
    "leaves": _leaves,
    "asphalt": _asphalt,
    "grass": _grass,
    "planks": _planks,
    "clutter": _leaves,
    "wreck": _planks,
}
# Saturation and brightness of the two colours of a ground.
_GROUND_TONES = {
    "clouds": ((0.35, 0.88), (0.05, 0.97)),
    "windows": ((0.30, 0.60), (0.18, 0.30)),
    "leaves": ((0.55, 0.22), (0.50, 0.48)),
    "asphalt": ((0.06, 0.30), (0.06, 0.46)),
    "grass": ((0.50, 0.50), (0.45, 0.72)),
    "planks": ((0.32, 0.78), (0.40, 0.50)),
    "clutter": ((0.00, 0.35), (0.00, 0.65)),
    "wreck": ((0.10, 0.25), (0.10, 0.40)),
}
_GROUND_HUE_SPREAD = 8.0
_THING_HUE_SPREAD = 11.0


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    clipped = (min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return np.array(colorsys.hsv_to_rgb((hue % 360) / 360, *clipped), dtype=np.float32)


def surface(rng: np.random.Generator, kind: Kind, height: int, width: int) -> np.ndarray:
    """Paint a patch of one kind: float32 (height, width, 3) RGB in 0-1."""
    if kind.is_thing:
        hue = kind.hue + rng.normal(0, _THING_HUE_SPREAD)
        saturation, value = rng.uniform(0.7, 1.0), rng.uniform(0.65, 1.0)
        first = _colour(hue, saturation, value)
        second = _colour(hue, saturation * rng.uniform(0.4, 0.8), value * rng.uniform(0.5, 0.9))
        pattern = _COATS[rng.integers(len(_COATS))]
    else:
        hue = kind.hue + rng.normal(0, _GROUND_HUE_SPREAD)
        shift = rng.uniform(-0.06, 0.06)
        first, second = (_colour(hue, s, v + shift) for s, v in _GROUND_TONES[kind.name])
        pattern = _GROUND_PATTERNS[kind.name]
    mix = pattern(rng, height, width)
    return first + mix[..., None] * (second - first)


def photograph(rng: np.random.Generator, paint: np.ndarray) -> np.ndarray:
    """Light a painted scene unevenly and take its picture.

    Args:
        rng: source of the light, the blur and the noise.
        paint: float32 (H, W, 3) RGB in 0-1.

    Returns:
        uint8 (H, W, 3) RGB.
    """
    h, w = paint.shape[:2]
    ramp = _ramp(rng, h, w)
    ramp = (ramp - ramp.min()) / (np.ptp(ramp) + 1e-6)
    low, high = rng.uniform(0.65, 0.95), rng.uniform(0.95, 1.2)
    y = np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, w, dtype=np.float32)[None, :]
    vignette = 1 - np.float32(rng.uniform(0, 0.25)) * (x * x + y * y) / 2
    shade = 1 - np.float32(rng.uniform(0, 0.3)) * _smooth(rng, h, w, h / 3, w / 3)
    light = (low + (high - low) * ramp) * vignette * shade
    picture = paint * light.astype(np.float32)[..., None]
    picture = cv2.GaussianBlur(picture, (3, 3), rng.uniform(0.3, 0.6))
    picture *= 255
    picture += np.float32(rng.uniform(2, 9)) * rng.standard_normal((h, w, 3), dtype=np.float32)
    return np.clip(picture, 0, 255).astype(np.uint8)
