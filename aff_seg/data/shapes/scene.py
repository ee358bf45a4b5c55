"""One scene: regions painted back to front, and the picture taken of them."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from aff_seg.data.shapes.grounds import lay_grounds
from aff_seg.data.shapes.kinds import CLUTTER, THINGS, WRECK, Kind
from aff_seg.data.shapes.polygons import blob_outline, clip_to_image, fill, thing_outline
from aff_seg.data.shapes.textures import photograph, surface

SMALLEST_ACROSS = 6
_THINGS_PER_SCENE = (4, 10)
_TRIES_PER_THING = 20
# A thing is not put where it would leave less than this of another, or of itself.
_LEAST_VISIBLE_SHARE = 0.4
_LEAST_VISIBLE_PIXELS = 12
_CROWD_CHANCE = 0.12
_CLUTTER_CHANCE = 0.3
_OVERLAP_CHANCE = 0.35


@dataclass(frozen=True)
class Region:
    """A polygon of one kind.

    Attributes:
        kind: what it is.
        polygon: integer (n, 2) points (x, y) inside the image.
        crowd: whether it is one of a group that is labelled as a whole.
    """

    kind: Kind
    polygon: np.ndarray
    crowd: bool = False


@dataclass(frozen=True)
class Segment:
    """The visible pixels of a thing, of a crowd, or of all grounds of one kind.

    Attributes:
        kind: what it is.
        mask: bool (H, W), never empty.
        crowd: whether it is a group of things.
    """

    kind: Kind
    mask: np.ndarray
    crowd: bool


@dataclass(frozen=True)
class Scene:
    """A picture with its ground truth.

    Attributes:
        image: uint8 (H, W, 3) RGB.
        labels: uint8 (H, W), for each pixel the index of its region.
        regions: back to front; the first covers the whole image.
    """

    image: np.ndarray
    labels: np.ndarray
    regions: tuple[Region, ...]

    def segments(self) -> list[Segment]:
        """Segments as COCO counts them, in the order in which they first appear."""
        members: dict[tuple, list[int]] = {}
        for index, region in enumerate(self.regions):
            alone = region.kind.is_thing and not region.crowd
            key = (region.kind.name, region.crowd, index if alone else None)
            members.setdefault(key, []).append(index)
        segments = []
        for indices in members.values():
            mask = np.isin(self.labels, indices)
            if mask.any():
                region = self.regions[indices[0]]
                segments.append(Segment(region.kind, mask, region.crowd))
        return segments


def draw_scene(
    rng: np.random.Generator,
    size: tuple[int, int],
    case: Literal["usual", "empty", "full"] = "usual",
) -> Scene:
    """Draw a scene; the same ``rng`` state draws the same scene.

    Args:
        rng: source of all chances.
        size: (height, width).
        case: "empty" has grounds only; "full" has for certain what others have by chance: a
            crowd, clutter, a wreck, and a thing that the border cuts.
    """
    easel = _Easel(size)
    for kind, polygon in lay_grounds(rng, size):
        easel.put(kind, polygon)
    if case == "full":
        _put_in_corner(rng, easel)
        for kind in (CLUTTER, WRECK):
            while not _put_clutter(rng, easel, kind, keep=True):
                pass
        _put_crowd(rng, easel)
    elif case == "usual":
        if rng.random() < _CLUTTER_CHANCE:
            _put_clutter(rng, easel, CLUTTER)
        if rng.random() < _CROWD_CHANCE:
            _put_crowd(rng, easel)
    if case != "empty":
        _add_things(rng, easel)
    image = photograph(rng, _paint(rng, easel.labels, easel.regions))
    return Scene(image=image, labels=easel.labels, regions=tuple(easel.regions))


class _Easel:
    """Regions so far, the label map they make, and how much of each is still visible."""

    def __init__(self, size: tuple[int, int]):
        self.size = size
        self.regions: list[Region] = []
        self.labels = np.zeros(size, dtype=np.uint8)
        self._kept: list[bool] = []
        self._full: list[int] = []
        self._visible: list[int] = []

    def put(
        self, kind: Kind, polygon: np.ndarray, *, crowd: bool = False, keep: bool = False
    ) -> bool:
        """Paint a polygon over the rest; False if it would hide a thing or hardly show.

        Grounds and clutter may be hidden, and hide things, unless they are to ``keep``.
        """
        polygon = clip_to_image(polygon, self.size)
        if len(polygon) < 3:
            return False
        left, top = polygon.min(axis=0)
        right, bottom = polygon.max(axis=0) + 1
        # Filled in place, not in a corner: Pillow rounds some borders by where they lie.
        mask = fill(polygon, self.size)[top:bottom, left:right]
        window = self.labels[top:bottom, left:right]
        area = int(mask.sum())
        keep = keep or kind.is_thing
        if keep and not self._can_hide(window[mask], area):
            return False
        for index, lost in enumerate(np.bincount(window[mask])[: len(self.regions)]):
            self._visible[index] -= int(lost)
        window[mask] = len(self.regions)
        self.regions.append(Region(kind, polygon, crowd))
        self._kept.append(keep)
        self._full.append(area)
        self._visible.append(area)
        return True

    def _can_hide(self, below: np.ndarray, area: int) -> bool:
        if area < _LEAST_VISIBLE_PIXELS:
            return False
        for index, lost in enumerate(np.bincount(below)):
            if lost and self._kept[index]:
                left = self._visible[index] - int(lost)
                least = max(_LEAST_VISIBLE_SHARE * self._full[index], _LEAST_VISIBLE_PIXELS)
                if left < least:
                    return False
        return True


def _put_clutter(
    rng: np.random.Generator, easel: _Easel, kind: Kind, *, keep: bool = False
) -> bool:
    height, width = easel.size
    radii = rng.uniform(0.04, 0.12, 2) * min(height, width)
    centre = rng.random(2) * (width - 1, height - 1)
    return easel.put(kind, blob_outline(rng, tuple(centre), tuple(radii)), keep=keep)


def _put_in_corner(rng: np.random.Generator, easel: _Easel) -> None:
    outline = thing_outline(rng, "disk", max(2 * SMALLEST_ACROSS, min(easel.size) // 4))
    easel.put(THINGS[0], outline - outline.max(axis=0) // 2)


def _put_crowd(rng: np.random.Generator, easel: _Easel) -> None:
    height, width = easel.size
    kind = THINGS[rng.integers(len(THINGS))]
    across = rng.uniform(0.05, 0.08) * min(height, width)
    across = max(SMALLEST_ACROSS, round(across))
    corner = rng.random(2) * (width - 4 * across, height - 2 * across)
    for _ in range(rng.integers(5, 10)):
        offset = corner + rng.random(2) * (3 * across, across)
        outline = thing_outline(rng, kind.name, across)
        easel.put(kind, np.rint(outline + offset).astype(np.int64), crowd=True)


def _add_things(rng: np.random.Generator, easel: _Easel) -> None:
    low, high = _THINGS_PER_SCENE
    count = rng.integers(low, high + 1)
    largest = min(easel.size) / 2
    across = SMALLEST_ACROSS * (largest / SMALLEST_ACROSS) ** rng.random(count)
    # Small ones tend to lie in front.
    order = np.argsort(-across * np.exp(rng.normal(0, 0.5, count)))
    for side in np.rint(across[order]).astype(int):
        kind = THINGS[rng.integers(len(THINGS))]
        outline = thing_outline(rng, kind.name, max(SMALLEST_ACROSS, side))
        for _ in range(_TRIES_PER_THING):
            if easel.put(kind, outline + _place(rng, easel, outline)):
                break


def _place(rng: np.random.Generator, easel: _Easel, outline: np.ndarray) -> np.ndarray:
    """Choose where an outline goes: over a corner of another thing, or anywhere.

    A little of it may lie outside the image.
    """
    height, width = easel.size
    extent = outline.max(axis=0)
    others = [r.polygon for r in easel.regions if r.kind.is_thing]
    if others and rng.random() < _OVERLAP_CHANCE:
        point = others[rng.integers(len(others))]
        centre = point[rng.integers(len(point))]
    else:
        centre = rng.random(2) * (width - 1, height - 1)
    margin = extent // 4
    corner = np.rint(centre - extent / 2).astype(np.int64)
    return np.clip(corner, -margin, np.array([width - 1, height - 1]) - extent + margin)


def _paint(rng: np.random.Generator, labels: np.ndarray, regions: list[Region]) -> np.ndarray:
    paint = np.zeros((*labels.shape, 3), dtype=np.float32)
    for index, box in enumerate(ndimage.find_objects(labels.astype(np.int32) + 1)):
        if box is None:
            continue
        mask = labels[box] == index
        patch = surface(rng, regions[index].kind, *mask.shape)
        paint[box][mask] = patch[mask]
    return paint
