"""Colours are exactly where the tokens are."""

import cv2
import numpy as np
import pytest

from aff_seg.prediction.segmentation import Segmentation
from aff_seg.visualization import token_figure
from aff_seg.visualization.panels import background
from aff_seg.visualization.token_figure import (
    COLOURS,
    RED,
    cells,
    draw_clusters,
    draw_importance,
    draw_tokens,
    spread,
)

LEVELS = ("res2", "res3", "res4", "res5")


def colours_of(picture):
    """All but greys."""
    numbers = np.unique(picture.astype(int) @ (1 << 16, 1 << 8, 1))
    colours = {(n >> 16, n >> 8 & 255, n & 255) for n in numbers.tolist()}
    return {colour for colour in colours if len(set(colour)) > 1}


def red(picture):
    return (picture == RED).all(-1)


def test_token_covers_its_four_by_four_pixels():
    inside, token = cells(np.array([[0, 0], [4, 2], [2, 1]]), (12, 20))
    assert inside.all()
    expected = np.full((12, 20), -1)
    expected[0:4, 0:4], expected[8:12, 16:20], expected[4:8, 8:12] = 0, 1, 2
    np.testing.assert_array_equal(spread(token, (12, 20), (12, 20)), expected)


def test_tokens_in_padding_do_not_count():
    # 10 x 13 pixels have 3 x 4 cells, the last ones cut off by the border.
    inside, token = cells(np.array([[4, 0], [3, 2], [0, 3], [7, 7]]), (10, 13))
    assert inside.tolist() == [False, True, False, False]
    assert token.shape == (3, 4) and (token >= 0).sum() == 1 and token[2, 3] == 1
    shown = spread(token, (10, 13), (10, 13))
    expected = np.full((10, 13), -1)
    expected[8:, 12:] = 1
    np.testing.assert_array_equal(shown, expected)


@pytest.mark.parametrize("size", [(24, 40), (6, 10), (7, 9), (1, 1), (31, 100)])
def test_tokens_are_mapped_to_the_size_of_the_picture(size):
    input_size = (12, 20)
    _, token = cells(np.array([[1, 1], [4, 0]]), input_size)
    shown = spread(token, size, input_size)
    for y in range(size[0]):
        for x in range(size[1]):
            cell_y = int((y + 0.5) * input_size[0] / size[0]) // 4
            cell_x = int((x + 0.5) * input_size[1] / size[1]) // 4
            assert shown[y, x] == token[cell_y, cell_x]


def first_cells(shape, input_size, counts=(8, 4, 2, 1), cluster_size=2):
    """What a backbone that keeps the first cells in raster order tells of an image."""
    columns = -(-input_size[1] // 4)
    return Segmentation(
        shape,
        tokens={
            level: np.array([(i % columns, i // columns) for i in range(count)])
            for level, count in zip(LEVELS, counts, strict=True)
        },
        importance={
            level: np.linspace(0, 1, count, dtype=np.float32)
            for level, count in zip(LEVELS[:-1], counts[:-1], strict=True)
        },
        cluster_size=dict.fromkeys(LEVELS, cluster_size),
        input_size=input_size,
    )


def draw(image, input_size):
    return draw_tokens(image, first_cells(image.shape[:2], input_size))


@pytest.mark.parametrize(
    ("shape", "columns"), [((60, 90), 2), ((64, 64), 2), ((90, 60), 4), ((10, 600), 1)]
)
def test_panels_stand_in_reading_order(shape, columns):
    figure = draw(np.full((*shape, 3), 100, dtype=np.uint8), (64, 64))
    rows = 4 // columns
    counts = [
        red(cell).sum()
        for row in np.array_split(figure[: -figure.shape[0] % rows or None], rows)
        for cell in np.array_split(row, columns, axis=1)
    ]
    image, stage2, stage3, stage4 = counts
    assert image == 0
    assert stage2 == pytest.approx(2 * stage3, rel=0.05)
    assert stage3 == pytest.approx(2 * stage4, rel=0.05)


@pytest.mark.parametrize("figure", [draw_tokens, draw_clusters, draw_importance])
@pytest.mark.parametrize(
    "shape", [(1, 1), (2, 3), (5, 300), (300, 5), (1, 2000), (192, 384), (500, 1700)]
)
def test_figures_can_be_looked_at(shape, figure):
    input_size = tuple(max(1, round(64 * side / max(shape))) for side in shape)
    image = np.zeros((*shape, 3), dtype=np.uint8)
    for blurred in (False, True):
        drawn = figure(image, first_cells(shape, input_size), blurred=blurred)
        assert drawn.dtype == np.uint8
        # Something coloured.
        assert (drawn.max(-1) != drawn.min(-1)).any()
        assert drawn.shape[1] > 480
        assert max(drawn.shape) < 2 * 1600 + 200
        assert drawn.size < 3 * 10**7


def test_small_pictures_are_enlarged_without_blur():
    image = np.random.default_rng(0).integers(1, 250, (3, 5, 3), dtype=np.uint8)
    figure = draw(image, (16, 16))
    assert colours_of(figure) == {tuple(c) for c in image.reshape(-1, 3)} | {RED}


def test_a_blurred_background_is_smooth():
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    sharp, smooth = (background(image, blurred=blurred).astype(int) for blurred in (False, True))
    assert sharp.shape == smooth.shape
    assert np.abs(np.diff(smooth, axis=1)).mean() < 0.05 * np.abs(np.diff(sharp, axis=1)).mean()


def panel_colours(figure, image):
    """The colours in a figure that are those of neither the image nor the lettering."""
    return colours_of(figure) - {tuple(c) for c in image.reshape(-1, 3)}


def test_tokens_of_one_cluster_have_one_colour():
    image = np.zeros((480, 480, 3), dtype=np.uint8)
    found = first_cells((480, 480), (64, 64), counts=(9, 4, 2, 1), cluster_size=3)
    # 9 tokens are 3 clusters, and so on: 3 colours in all.
    assert len(panel_colours(draw_clusters(image, found), image)) == 3
    assert len({tuple(colour) for colour in COLOURS}) == len(COLOURS)


def test_titles_count_in_english(monkeypatch):
    titles = []
    monkeypatch.setattr(token_figure, "arrange", lambda panels, note: titles.extend(panels))
    draw_clusters(np.zeros((8, 8, 3), dtype=np.uint8), first_cells((8, 8), (64, 64)))
    assert [title.split(": ")[1] for title, _ in titles] == [
        "4 clusters of 2",
        "2 clusters of 2",
        *["1 cluster of 2"] * 2,
    ]


def test_the_picture_below_does_not_change_the_colours():
    red_picture = np.full((480, 480, 3), (255, 0, 0), dtype=np.uint8)
    found = first_cells((480, 480), (64, 64))
    grey = cv2.cvtColor(red_picture, cv2.COLOR_RGB2GRAY)[..., None].repeat(3, -1)
    for draw_figure in (draw_clusters, draw_importance):
        on_red, on_grey = draw_figure(red_picture, found), draw_figure(grey, found)
        np.testing.assert_array_equal(on_red[:, 600:], on_grey[:, 600:])


def test_importance_goes_from_blue_to_red():
    image = np.zeros((480, 480, 3), dtype=np.uint8)
    colours = panel_colours(draw_importance(image, first_cells((480, 480), (64, 64))), image)
    assert any(red > 2 * blue for red, _, blue in colours)
    assert any(blue > red for red, _, blue in colours)
