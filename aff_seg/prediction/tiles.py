"""Results of overlapping tiles merged into that of a large image.

Every pixel belongs to the tile in which it lies deepest, which decides its class and its panoptic
segment; only where that one sees no object, but a neighbour does, the object counts. Objects of
neighbouring tiles are one where they have the same class and agree in the overlap; stuff of one
class is one segment anyway.
"""

import itertools
import numbers
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from aff_seg.errors import UserError
from aff_seg.prediction.segmentation import Found, PackedMask, Segmentation, Size

# Smallest side of a tile in pixels.
LEAST_TILE = 32
# Intersection over union, in the overlap of two tiles, from which objects are one.
LEAST_AGREEMENT = 0.5
# Instances below this score, and those without a pixel, are left out: each tile has a hundred.
LEAST_SCORE = 0.05


@dataclass(frozen=True)
class Tile:
    """A place in the grid.

    Attributes:
        row, column: counted from 0.
        rows, columns: the pixels it covers.
        own_rows, own_columns: the pixels that belong to it.
    """

    row: int
    column: int
    rows: slice
    columns: slice
    own_rows: slice
    own_columns: slice

    @property
    def own(self) -> tuple[slice, slice]:
        """What belongs to it, seen from its corner."""
        return _from(self.own_rows, self.rows.start), _from(self.own_columns, self.columns.start)


class TileGrid:
    """Tiles of equal size that cover an image, in reading order.

    Args:
        size: (H, W) of the image.
        tile: side of a tile in pixels; tiles are no larger than the image.
        overlap: least overlap of neighbours in pixels; by default a quarter of a tile.

    Raises:
        UserError: tiles are too small, or overlap by more than half.
    """

    def __init__(self, size: Size, tile: int, overlap: int | None = None):
        if not isinstance(tile, numbers.Integral) or tile < LEAST_TILE:
            raise UserError(
                f"tile is {tile!r}, but must be a whole number of pixels, at least {LEAST_TILE}."
            )
        if overlap is None:
            overlap = tile // 4
        if not isinstance(overlap, numbers.Integral) or not 0 < overlap <= tile // 2:
            raise UserError(
                f"overlap is {overlap!r}, but must be a whole number of pixels, 1 to {tile // 2}."
            )
        self.size = size
        self._rows, self._columns = (_cut(side, tile, overlap) for side in size)

    def __len__(self) -> int:
        return len(self._rows) * len(self._columns)

    def __iter__(self) -> Iterator[Tile]:
        for (row, (rows, own_rows)), (column, (columns, own_columns)) in itertools.product(
            enumerate(self._rows), enumerate(self._columns)
        ):
            yield Tile(row, column, rows, columns, own_rows, own_columns)


def _cut(side: int, tile: int, overlap: int) -> list[tuple[slice, slice]]:
    """What each tile covers of a side, and what belongs to it: up to the middle of overlaps."""
    count = max(1, -(-(side - overlap) // (tile - overlap)))
    tile = min(tile, side)
    starts = np.linspace(0, side - tile, count).round().astype(int).tolist()
    middles = [(b + a + tile) // 2 for a, b in itertools.pairwise(starts)]
    bounds = itertools.pairwise([0, *middles, side])
    return [
        (slice(start, start + tile), slice(*bound))
        for start, bound in zip(starts, bounds, strict=True)
    ]


def _from(place: slice, origin: int) -> slice:
    return slice(place.start - origin, place.stop - origin)


@dataclass
class _Seen:
    """A tile whose neighbours are still to come.

    Attributes:
        things: number in the tile's panoptic map and node of every thing.
        instances: node of every instance.
    """

    tile: Tile
    result: Segmentation
    things: list[tuple[int, int]]
    instances: list[int]


@dataclass(frozen=True)
class _Piece:
    """An instance of a tile, in the frame of the image.

    Attributes:
        pixels: of its mask.
        owned: whether at least half of them belong to the tile.
    """

    found: Found
    pixels: int
    owned: bool


@dataclass(frozen=True)
class _Side:
    """Objects of one tile where it overlaps another: nodes, classes, and masks of that part."""

    nodes: Sequence[int]
    kinds: Sequence[int]
    masks: Sequence[np.ndarray]


class _Nodes:
    """Things of which some turn out to be one (a disjoint-set forest)."""

    def __init__(self) -> None:
        #: What is known about each node.
        self.about: list[Any] = []
        self._parent: list[int] = []

    def new(self, about: Any) -> int:
        self.about.append(about)
        self._parent.append(len(self._parent))
        return len(self._parent) - 1

    def join(self, one: int, other: int) -> None:
        one, other = sorted((self._root(one), self._root(other)))
        self._parent[other] = one

    def roots(self) -> list[int]:
        """For each node the first of those that are one with it."""
        return [self._root(node) for node in range(len(self._parent))]

    def _root(self, node: int) -> int:
        while self._parent[node] != node:
            self._parent[node] = self._parent[self._parent[node]]
            node = self._parent[node]
        return node


def _join_alike(nodes: _Nodes, before: _Side, now: _Side) -> None:
    """Join each object with at most one of the other side, of its class and with its pixels."""
    one, other = (np.array(side.masks).reshape(len(side.nodes), -1) for side in (before, now))
    both = one.astype(np.float32) @ other.T.astype(np.float32)
    either = one.sum(1)[:, None] + other.sum(1) - both
    agreement = both / np.maximum(either, 1)
    agreement[np.array(before.kinds)[:, None] != np.array(now.kinds)] = 0
    for i, j in zip(*linear_sum_assignment(agreement, maximize=True), strict=True):
        if agreement[i, j] >= LEAST_AGREEMENT:
            nodes.join(before.nodes[i], now.nodes[j])


def _common(one: slice, other: slice) -> slice:
    return slice(max(one.start, other.start), min(one.stop, other.stop))


class TileMerger:
    """Takes the results of tiles in the grid's order.

    What it holds of tiles are the last row's results; all instances, packed; and maps of the
    whole image.

    Args:
        grid: of the image.
    """

    def __init__(self, grid: TileGrid):
        self._grid = grid
        self._labels: np.ndarray | None = None
        self._ids: np.ndarray | None = None
        # Segments and instances so far, each a node; those that are one have one root.
        self._segments, self._stuff = _Nodes(), {}
        self._instances: _Nodes | None = None
        self._seen: dict[tuple[int, int], _Seen] = {}

    def add(self, tile: Tile, result: Segmentation) -> None:
        """Take the result of a tile."""
        seen = _Seen(tile, result, [], [])
        if result.labels is not None:
            if self._labels is None:
                self._labels = np.zeros(self._grid.size, dtype=np.int32)
            self._labels[tile.own_rows, tile.own_columns] = result.labels[tile.own]
        if result.ids is not None:
            self._add_segments(seen)
        if result.found is not None:
            sure = [one for one in result.found if one.score >= LEAST_SCORE and len(one.mask.bits)]
            seen.result = replace(result, found=sure)
            self._add_instances(seen)
        for place in ((tile.row, tile.column - 1), (tile.row - 1, tile.column)):
            if place in self._seen:
                self._join(self._seen[place], seen)
        # Below and to the right of it there is nothing more to come.
        self._seen.pop((tile.row - 1, tile.column), None)
        self._seen[tile.row, tile.column] = seen

    def result(self) -> Segmentation:
        """The image's."""
        ids = segments = found = None
        if self._ids is not None:
            ids, segments = self._merged_segments()
        if self._instances is not None:
            found = self._merged_instances()
        return Segmentation(self._grid.size, ids, segments, self._labels, found)

    def _add_segments(self, seen: _Seen) -> None:
        if self._ids is None:
            self._ids = np.zeros(self._grid.size, dtype=np.int32)
        result, tile = seen.result, seen.tile
        nodes = np.zeros(1 + max((s["id"] for s in result.segments), default=0), dtype=np.int32)
        for segment in result.segments:
            about = {key: segment[key] for key in ("isthing", "category_id")}
            if segment["isthing"]:
                node = self._segments.new(about)
                seen.things.append((segment["id"], node))
            else:
                if about["category_id"] not in self._stuff:
                    self._stuff[about["category_id"]] = self._segments.new(about)
                node = self._stuff[about["category_id"]]
            nodes[segment["id"]] = node + 1
        before, now = self._ids[tile.rows, tile.columns], nodes[result.ids]
        own = np.zeros(now.shape, dtype=bool)
        own[tile.own] = True
        things = np.array([False, *(about["isthing"] for about in self._segments.about)])
        seen_before, seen_now = things[before], things[now]
        np.copyto(before, now, where=(own & ~seen_before) | (seen_now & (own | ~seen_before)))

    def _add_instances(self, seen: _Seen) -> None:
        if self._instances is None:
            self._instances = _Nodes()
        tile = seen.tile
        for one in seen.result.found:
            mask = one.mask.unpack()
            pixels, own = int(mask.sum()), int(mask[tile.own].sum())
            moved = one.mask.moved((tile.rows.start, tile.columns.start), self._grid.size)
            found = Found(moved, one.score, one.category_id)
            seen.instances.append(self._instances.new(_Piece(found, pixels, 2 * own >= pixels)))

    def _join(self, before: _Seen, now: _Seen) -> None:
        """Make objects one that agree where two tiles overlap."""
        rows = _common(before.tile.rows, now.tile.rows)
        columns = _common(before.tile.columns, now.tile.columns)
        parts = [
            (_from(rows, seen.tile.rows.start), _from(columns, seen.tile.columns.start))
            for seen in (before, now)
        ]
        if before.things and now.things:
            sides = []
            for seen, part in zip((before, now), parts, strict=True):
                ids = seen.result.ids[part]
                kinds = [self._segments.about[node]["category_id"] for _, node in seen.things]
                masks = [ids == number for number, _ in seen.things]
                sides.append(_Side([node for _, node in seen.things], kinds, masks))
            _join_alike(self._segments, *sides)
        if before.instances and now.instances:
            sides = []
            for seen, part in zip((before, now), parts, strict=True):
                kinds = [one.category_id for one in seen.result.found]
                masks = [one.mask.unpack()[part] for one in seen.result.found]
                sides.append(_Side(seen.instances, kinds, masks))
            _join_alike(self._instances, *sides)

    def _merged_segments(self) -> tuple[np.ndarray, list[dict]]:
        roots = np.array([0, *(node + 1 for node in self._segments.roots())], dtype=np.int32)
        shown = np.unique(roots[np.unique(self._ids)])
        shown = shown[shown > 0]
        number = np.zeros(len(roots), dtype=np.int32)
        number[shown] = np.arange(1, len(shown) + 1)
        # In place, for the map is the largest thing here.
        np.take(number[roots], self._ids, out=self._ids)
        segments = [
            {"id": place, **self._segments.about[root - 1]}
            for place, root in enumerate(shown.tolist(), 1)
        ]
        return self._ids, segments

    def _merged_instances(self) -> list[Found]:
        pieces = defaultdict(list)
        for root, piece in zip(self._instances.roots(), self._instances.about, strict=True):
            pieces[root].append(piece)
        merged = []
        for group in pieces.values():
            # What no neighbour has seen, though most of it lies there, is left out.
            if len(group) == 1 and not group[0].owned:
                continue
            weights = [piece.pixels for piece in group]
            score = float(np.average([piece.found.score for piece in group], weights=weights))
            mask = PackedMask.union([piece.found.mask for piece in group])
            merged.append(Found(mask, score, group[0].found.category_id))
        return sorted(merged, key=lambda one: -one.score)
