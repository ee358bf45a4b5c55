"""Between tokens and regular grids: the one frame of the canvas for both.

Shape legend: B images, N tokens, C channels, (H, W) canvas of stride-4 pixels, (h, w) cells of a
grid of stride s. Cell (row, column) covers s / 4 canvas pixels each way, and its position is the
centre of those that lie on the canvas: of stride 4 it is (column, row), as a token's.
"""

import math
from collections.abc import Mapping

import torch
from detectron2.layers import ShapeSpec
from torch import Tensor

from aff_seg import ops
from aff_seg.errors import UserError
from aff_seg.structures import Points

CANVAS_STRIDE = 4
# Of an interpolation between tokens: how many are read, and the exponent on squared distances.
INTERPOLATION_NEIGHBOURS = 4
INTERPOLATION_POWER = 3.0


def cell_centres(
    canvas: tuple[int, int], size: tuple[int, int], stride: int, device: torch.device
) -> Tensor:
    """Positions of the cells of a grid in raster order.

    Args:
        canvas: (H, W).
        size: (h, w) cells.
        stride: pixels of the image from cell to cell, a multiple of 4.
        device: where the positions are wanted.

    Returns:
        ``(1, h * w, 2)`` float32, (x, y) in stride-4 pixels of the canvas; halves may occur.
    """
    step = stride // CANVAS_STRIDE
    axes = []
    for pixels, cells in zip(canvas, size, strict=True):
        first = torch.arange(cells, device=device, dtype=torch.float32) * step
        last = first + (step - 1)
        axes.append((first.clamp(max=pixels - 1) + last.clamp(max=pixels - 1)) / 2)
    y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack((x, y), dim=-1).view(1, -1, 2)


def to_grid(points: Points, stride: int) -> Tensor:
    """Interpolate tokens at the cells of a grid.

    A cell takes the inverse-distance mean of the four tokens nearest to its centre, so that it has
    a value where there is no token near.

    Args:
        points: N tokens.
        stride: of the grid, a multiple of 4.

    Returns:
        ``(B, C, h, w)``, h = ceil(4 H / stride), w likewise; differentiable in the features.
    """
    size = tuple(-(-pixels * CANVAS_STRIDE // stride) for pixels in points.canvas)
    batch, num_tokens, _ = points.pos.shape
    query = cell_centres(points.canvas, size, stride, points.pos.device).to(points.pos)
    query = query.expand(batch, -1, -1)
    near = ops.knn(query, points.pos, min(INTERPOLATION_NEIGHBOURS, num_tokens))[0]
    read = ops.shepard_interpolate(points.feat, points.pos, query, near, INTERPOLATION_POWER)
    return read.transpose(1, 2).unflatten(-1, size)


def levels_by_stride(shapes: Mapping[str, ShapeSpec]) -> dict[str, ShapeSpec]:
    """The levels of a backbone under the names of their strides: res2 for 4, res3 for 8, ...

    Raises:
        UserError: two levels have one stride, or a stride is no power of two from 4 up.
    """
    named: dict[str, ShapeSpec] = {}
    for level, shape in shapes.items():
        if not _is_stride(shape.stride):
            raise UserError(
                f"Level {level} of the backbone has stride {shape.stride}, but the head takes 4, "
                "8, 16, ...; leave the level out of the backbone's output."
            )
        name = _level_name(shape.stride)
        if name in named:
            raise UserError(
                f"Two levels of the backbone have stride {shape.stride}, {level} among them; leave "
                "one out of its output (for a ResNet: no dilation, and no stem)."
            )
        named[name] = shape
    return named


def as_points(
    features: Mapping[str, Tensor | Points], strides: Mapping[str, int]
) -> dict[str, Points]:
    """What a backbone gives, as points in the common frame.

    Args:
        features: level to ``(B, C, h, w)`` or to points, which stay as they are.
        strides: level to the stride of its grid. The grid of stride 4 is the canvas.

    Returns:
        points under the names of :func:`levels_by_stride`; cells in raster order.

    Raises:
        ValueError: there are grids, but none of stride 4.
    """
    grids = {strides[level]: x for level, x in features.items() if isinstance(x, Tensor)}
    if grids and CANVAS_STRIDE not in grids:
        raise ValueError(f"features must have a grid of stride 4, got strides {sorted(grids)}")
    points = {}
    for level, feature in features.items():
        if isinstance(feature, Points):
            points[level] = feature
            continue
        canvas = tuple(grids[CANVAS_STRIDE].shape[-2:])
        pos = cell_centres(canvas, feature.shape[-2:], strides[level], feature.device)
        tokens = feature.flatten(2).transpose(1, 2)
        pos = pos.expand(len(tokens), -1, -1)
        points[_level_name(strides[level])] = Points(tokens, pos, canvas)
    return points


def _is_stride(stride: int | None) -> bool:
    return stride is not None and stride >= CANVAS_STRIDE and math.log2(stride).is_integer()


def _level_name(stride: int) -> str:
    return f"res{int(math.log2(stride))}"
