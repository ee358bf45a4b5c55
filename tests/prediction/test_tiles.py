"""Tiles cover an image, and their results become one."""

import numpy as np
import pytest

from aff_seg.errors import UserError
from aff_seg.prediction.segmentation import Found, PackedMask, Segmentation
from aff_seg.prediction.tiles import TileGrid, TileMerger

STUFF, THING, OTHER = 0, 1, 2


@pytest.mark.parametrize(
    ("size", "tile", "overlap", "count"),
    [
        ((100, 100), 100, 25, 1),
        ((40, 60), 100, 25, 1),
        ((100, 101), 100, 25, 2),
        ((175, 250), 100, 25, 6),
        ((1000, 37), 64, 32, 31),
        ((333, 517), 128, 1, 15),
    ],
)
def test_tiles_cover_the_image_and_share_out_its_pixels(size, tile, overlap, count):
    grid = TileGrid(size, tile, overlap)
    tiles = list(grid)
    assert len(tiles) == len(grid) == count
    owners = np.zeros(size, dtype=int)
    for one in tiles:
        covered = (one.rows.stop - one.rows.start, one.columns.stop - one.columns.start)
        assert covered == (min(tile, size[0]), min(tile, size[1]))
        assert one.rows.start >= 0 and one.rows.stop <= size[0]
        assert one.rows.start <= one.own_rows.start <= one.own_rows.stop <= one.rows.stop
        owners[one.own_rows, one.own_columns] += 1
    assert (owners == 1).all()
    for one, other in zip(tiles, tiles[1:], strict=False):
        if one.row == other.row:
            assert one.columns.stop - other.columns.start >= overlap


@pytest.mark.parametrize(
    ("tile", "overlap"), [(16, 4), (100, 0), (100, 51), (0, 0), (100.0, 25), (100, 25.0), ("a", 9)]
)
def test_impossible_tiles_are_user_errors(tile, overlap):
    with pytest.raises(UserError, match="tile is|overlap is"):
        TileGrid((500, 500), tile, overlap)


def scene(size):
    """Objects anywhere, of which no two of one class touch: their numbers by pixel."""
    ids = np.zeros(size, dtype=np.int32)
    for number in range(1, 9):
        x, y = 37 * number % (size[1] - 60), 53 * number % (size[0] - 90)
        ids[y : y + 80, x : x + 14 + 4 * number] = number
    ids[size[0] // 2 : size[0] // 2 + 9] = 9  # as wide as the image
    return ids


def kind_of(number):
    return THING if number % 2 else OTHER


def classes_of(ids):
    return np.where(ids == 0, STUFF, np.where(ids % 2, THING, OTHER)).astype(np.int32)


def look(ids, tile):
    """What a perfect model finds in a tile, with numbers of its own."""
    part = ids[tile.rows, tile.columns]
    numbers = [n for n in np.unique(part)[::-1].tolist() if n]
    labels = classes_of(part)
    own = np.ones(part.shape, dtype=np.int32)
    segments = [{"id": 1, "isthing": False, "category_id": STUFF}]
    for place, number in enumerate(numbers, 2):
        own[part == number] = place
        segments.append({"id": place, "isthing": True, "category_id": kind_of(number)})
    found = [Found(PackedMask.of(part == n), 0.5 + n / 100, kind_of(n)) for n in reversed(numbers)]
    found += [Found(PackedMask.of(part == -1), 0.9, THING)]
    found += [Found(PackedMask.of(part == 0), 0.01, THING)]
    return Segmentation(part.shape, own, segments, labels, found)


def merge(ids, tile, overlap):
    grid = TileGrid(ids.shape, tile, overlap)
    merger = TileMerger(grid)
    for place in grid:
        merger.add(place, look(ids, place))
    return merger.result()


@pytest.mark.parametrize(("tile", "overlap"), [(600, 100), (128, 40), (96, 30), (300, 64)])
def test_objects_on_seams_stay_whole(tile, overlap):
    ids = scene((400, 500))
    merged = merge(ids, tile, overlap)
    numbers = [n for n in np.unique(ids).tolist() if n]
    np.testing.assert_array_equal(merged.semantic, classes_of(ids))

    things = [s for s in merged.segments if s["isthing"]]
    assert len(things) == len(numbers)
    assert [s["category_id"] for s in merged.segments if not s["isthing"]] == [STUFF]
    assert [s["id"] for s in merged.segments] == list(range(1, len(merged.segments) + 1))
    masks = {segment.mask.tobytes() for segment in merged.panoptic_segments()}
    assert masks == {(ids == n).tobytes() for n in (0, *numbers)}

    found = {mask.tobytes(): score for mask, score in zip(merged.masks, merged.scores, strict=True)}
    assert len(found) == len(merged.found) == len(numbers)
    for number in numbers:
        assert found[(ids == number).tobytes()] == pytest.approx(0.5 + number / 100)
    assert (np.diff(merged.scores) <= 0).all()


def test_one_of_two_neighbours_that_sees_more_does_not_count():
    ids = np.zeros((100, 160), dtype=np.int32)
    ids[10:40, 85:95] = 1  # in the right half of the overlap, columns 60 to 100
    grid = TileGrid(ids.shape, 100, 40)
    left, right = grid
    for blind, kept in ((right, 0), (left, 1)):
        merger = TileMerger(grid)
        for place in (left, right):
            seen = look(np.zeros_like(ids) if place is blind else ids, place)
            merger.add(place, seen)
        assert len(merger.result().found) == kept


@pytest.mark.parametrize("blind", [0, 1])
def test_an_object_that_one_of_two_sees_is_not_cut(blind):
    ids = np.zeros((100, 160), dtype=np.int32)
    ids[10:40, 70:90] = 1  # in the overlap, columns 60 to 100, across its middle
    grid = TileGrid(ids.shape, 100, 40)
    merger = TileMerger(grid)
    for number, place in enumerate(grid):
        merger.add(place, look(np.zeros_like(ids) if number == blind else ids, place))
    result = merger.result()
    (thing,) = (segment for segment in result.panoptic_segments() if segment.is_thing)
    np.testing.assert_array_equal(thing.mask, ids == 1)


def test_neighbours_of_different_class_stay_apart():
    grid = TileGrid((100, 160), 100, 40)
    merger = TileMerger(grid)
    for kind, place in enumerate(grid):
        mask = PackedMask.of(np.ones((100, 100), dtype=bool))
        merger.add(place, Segmentation((100, 100), found=[Found(mask, 0.5, kind)]))
    result = merger.result()
    assert sorted(result.classes) == [0, 1]
    assert result.panoptic is None and result.semantic is None


def test_nothing_found_anywhere():
    grid = TileGrid((100, 160), 100, 40)
    merger = TileMerger(grid)
    for place in grid:
        ids = np.zeros((100, 100), dtype=np.int32)
        merger.add(place, Segmentation((100, 100), ids, [], None, []))
    result = merger.result()
    assert result.segments == [] and result.found == [] and not result.panoptic.any()
