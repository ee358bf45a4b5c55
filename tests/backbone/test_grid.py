"""Tokens and grids share one frame, whichever way they are turned into each other."""

import pytest
import torch
from detectron2.layers import ShapeSpec

from aff_seg.backbone.clustering import grid_positions
from aff_seg.backbone.grid import as_points, cell_centres, levels_by_stride, to_grid
from aff_seg.errors import UserError
from aff_seg.structures import Points

CPU = torch.device("cpu")


def points_of(pos, canvas, channels=3):
    generator = torch.Generator().manual_seed(0)
    return Points(torch.randn(*pos.shape[:2], channels, generator=generator), pos, canvas)


def test_cells_of_stride_4_are_the_pixels_of_the_canvas():
    centres = cell_centres((5, 7), (5, 7), 4, CPU)
    assert torch.equal(centres, grid_positions((5, 7), CPU))


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("canvas", [(8, 16), (9, 17), (5, 3), (1, 1)])
def test_a_cell_lies_at_the_mean_of_its_pixels(stride, canvas):
    step = stride // 4
    size = tuple(-(-pixels // step) for pixels in canvas)
    pixels = grid_positions(canvas, CPU)[0]
    cell = pixels.long() // step
    place = cell[:, 1] * size[1] + cell[:, 0]
    means = [pixels[place == i].mean(0) for i in range(size[0] * size[1])]
    torch.testing.assert_close(cell_centres(canvas, size, stride, CPU)[0], torch.stack(means))


def test_a_full_canvas_is_laid_out_as_it_is():
    canvas = (6, 9)
    order = torch.randperm(54)
    shuffled = points_of(grid_positions(canvas, CPU)[:, order], canvas)
    grid = to_grid(shuffled, 4)
    assert grid.shape == (1, 3, 6, 9)
    expected = torch.empty(54, 3)
    expected[order] = shuffled.feat[0]
    torch.testing.assert_close(grid[0].flatten(1).T, expected)


def test_cells_are_inverse_distance_means_of_four_tokens():
    canvas = (13, 18)
    pos = torch.stack([grid_positions(canvas, CPU)[0, torch.randperm(234)[:40]] for _ in range(2)])
    points = points_of(pos, canvas)
    grid = to_grid(points, 16)
    assert grid.shape == (2, 3, 4, 5)
    for image in range(2):
        for row in range(4):
            for column in range(5):
                last = torch.tensor([17, 12])
                begin = torch.tensor([4 * column, 4 * row])
                centre = (begin + torch.minimum(begin + 3, last)) / 2
                d2 = (pos[image] - centre).square().sum(-1)
                near = d2.argsort(stable=True)[:4]
                weight = 1 / (d2[near] ** 3 + 1e-11)
                mean = (weight[:, None] * points.feat[image, near]).sum(0) / weight.sum()
                torch.testing.assert_close(grid[image, :, row, column], mean)


def test_an_empty_region_takes_the_nearest_tokens():
    pos = torch.tensor([[[0.0, 0], [1, 0]]])
    grid = to_grid(points_of(pos, (16, 16)), 32)
    assert grid.shape == (1, 3, 2, 2)
    assert grid.isfinite().all()


def test_grids_become_points_in_the_frame_of_the_canvas():
    features = {"a": torch.randn(2, 5, 6, 9), "b": torch.randn(2, 7, 3, 5)}
    points = as_points(features, {"a": 4, "b": 8})
    assert list(points) == ["res2", "res3"]
    assert points["res2"].canvas == points["res3"].canvas == (6, 9)
    assert torch.equal(points["res2"].pixel_index, torch.arange(54).expand(2, -1))
    torch.testing.assert_close(points["res3"].feat[1, 5 + 2], features["b"][1, :, 1, 2])
    assert points["res3"].pos[1, 5 + 2].tolist() == [4.5, 2.5]
    # The last column of cells covers one column of pixels.
    assert points["res3"].pos[0, 4].tolist() == [8, 0.5]
    assert (points["res3"].pixel_index < 54).all()
    # As points again, and laid out again.
    assert as_points(points, {"res2": 4, "res3": 8}) == points
    torch.testing.assert_close(to_grid(points["res3"], 8), features["b"])
    with pytest.raises(ValueError, match=r"a grid of stride 4, got strides \[8, 16\]"):
        as_points({"x": features["a"], "y": features["b"]}, {"x": 8, "y": 16})


def test_levels_are_named_by_their_strides():
    shapes = {f"p{i}": ShapeSpec(channels=i, stride=2**i) for i in (2, 3, 4)}
    assert levels_by_stride(shapes) == {f"res{i}": shapes[f"p{i}"] for i in (2, 3, 4)}
    dilated = {"res4": ShapeSpec(stride=16), "res5": ShapeSpec(stride=16)}
    with pytest.raises(UserError, match="Two levels of the backbone have stride 16, res5 among"):
        levels_by_stride(dilated)
    with pytest.raises(UserError, match="Level stem of the backbone has stride 2, but the head"):
        levels_by_stride({"stem": ShapeSpec(stride=2)})
