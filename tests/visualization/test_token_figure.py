"""Red pixels are exactly where the tokens are."""

import numpy as np
import pytest

from aff_seg.visualization.token_figure import RED, draw_tokens, kept_cells, paint_tokens


def red(picture):
    return (picture == RED).all(-1)


def test_token_covers_its_four_by_four_pixels():
    image = np.zeros((12, 20, 3), dtype=np.uint8)
    kept = kept_cells(np.array([[0, 0], [4, 2], [2, 1]]), (12, 20))
    expected = np.zeros((12, 20), dtype=bool)
    expected[0:4, 0:4] = expected[8:12, 16:20] = expected[4:8, 8:12] = True
    painted = paint_tokens(image, kept, (12, 20))
    np.testing.assert_array_equal(red(painted), expected)
    assert (painted[~expected] == 0).all()
    assert not image.any()


def test_tokens_in_padding_do_not_count():
    # 10 x 13 pixels have 3 x 4 cells, the last ones cut off by the border.
    kept = kept_cells(np.array([[3, 2], [4, 0], [0, 3], [7, 7]]), (10, 13))
    assert kept.shape == (3, 4)
    assert kept.sum() == 1 and kept[2, 3]
    painted = paint_tokens(np.zeros((10, 13, 3), dtype=np.uint8), kept, (10, 13))
    expected = np.zeros((10, 13), dtype=bool)
    expected[8:, 12:] = True
    np.testing.assert_array_equal(red(painted), expected)


@pytest.mark.parametrize("size", [(24, 40), (6, 10), (7, 9), (1, 1), (31, 100)])
def test_tokens_are_mapped_to_the_size_of_the_picture(size):
    input_size = (12, 20)
    kept = kept_cells(np.array([[1, 1], [4, 0]]), input_size)
    painted = paint_tokens(np.zeros((*size, 3), dtype=np.uint8), kept, input_size)
    for y in range(size[0]):
        for x in range(size[1]):
            cell_y = int((y + 0.5) * input_size[0] / size[0]) // 4
            cell_x = int((x + 0.5) * input_size[1] / size[1]) // 4
            assert red(painted)[y, x] == kept[cell_y, cell_x]


def draw(image, input_size, tokens_per_level=(4, 2, 1)):
    """A figure in which the first cells in raster order are kept."""
    columns = -(-input_size[1] // 4)
    tokens = {
        level: np.array([(i % columns, i // columns) for i in range(count)])
        for level, count in zip(("res3", "res4", "res5"), tokens_per_level, strict=True)
    }
    return draw_tokens(image, tokens, input_size)


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


@pytest.mark.parametrize(
    "shape", [(1, 1), (2, 3), (5, 300), (300, 5), (1, 2000), (192, 384), (3000, 4000)]
)
def test_figure_can_be_looked_at(shape):
    input_size = tuple(max(1, round(64 * side / max(shape))) for side in shape)
    figure = draw(np.zeros((*shape, 3), dtype=np.uint8), input_size)
    assert figure.dtype == np.uint8
    assert red(figure).any()
    assert figure.shape[1] > 480
    assert max(figure.shape) < 2 * 1600 + 200
    assert figure.size < 3 * 10**7


def test_small_pictures_are_enlarged_without_blur():
    image = np.random.default_rng(0).integers(1, 250, (3, 5, 3), dtype=np.uint8)
    figure = draw(image, (16, 16))
    colours = {tuple(c) for c in figure.reshape(-1, 3) if len(set(c)) > 1}
    assert colours == {tuple(c) for c in image.reshape(-1, 3)} | {RED}
