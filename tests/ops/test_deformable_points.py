"""The native ``deformable_points`` against its reference."""

import math

import pytest
import torch
from native_op import (
    DTYPES,
    accumulating,
    assert_matches,
    assert_same_with_any_threads,
    needs_native,
    scattered_memory,
)

from aff_seg import ops
from aff_seg.ops import reference

pytestmark = needs_native

F64 = torch.float64


def _inputs(
    dtype=F64,
    *,
    counts=(3, 14, 40),
    heads=2,
    dim=24,
    queries=21,
    points=4,
    near=4,
    size=(7, 9),
    power=2.7,
):
    """Differentiable inputs by name, and the others; levels of few tokens list absent ones."""
    exact = accumulating(dtype)
    height, width = size
    levels = len(counts)
    pos = torch.randint(0, min(size), (2, sum(counts), 2)).to(exact)
    table, start = [], 0
    for count in counts:
        near_pixel = torch.randint(start, start + count, (2, height, width, near))
        absent = torch.arange(near) >= count
        table.append(near_pixel.masked_fill(absent, -1))
        start += count
    location = torch.rand(2, queries, heads, levels, points, 2, dtype=exact)
    leaves = {
        "value": torch.randn(2, sum(counts), heads, dim, dtype=exact).to(dtype),
        # Inside the canvas and around it.
        "location": location * (max(size) + 4) - 2,
        "weight": torch.rand(2, queries, heads, levels, points, dtype=exact),
        "power": torch.tensor([power], dtype=exact),
    }
    return leaves, {"pos": pos, "table": torch.stack(table, 1).int()}


def _native(given):
    pos, table = given.values()
    return lambda value, location, weight, power: ops.deformable_points(
        value, pos, table, location, weight, power
    )


def _reference(given):
    pos, table = given.values()
    return lambda value, location, weight, power: reference.deformable_points(
        value, pos.double(), table, location, weight, power
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("power", [2.7, 3.0, 2.0, 0.6])
def test_matches_reference(dtype, power):
    leaves, given = _inputs(dtype, power=power)
    assert_matches(_native(given), _reference(given), leaves)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize(
    "sizes",
    [
        {"counts": (1,), "queries": 1, "heads": 1, "points": 1, "near": 1, "size": (1, 1)},
        {"counts": (1, 1), "dim": 1},
        {"counts": (5,), "near": 9, "points": 3},
        {"counts": (60, 200), "queries": 150, "heads": 8, "dim": 32, "size": (20, 30)},
    ],
    ids=str,
)
def test_sizes(dtype, sizes):
    leaves, given = _inputs(dtype, **sizes)
    assert_matches(_native(given), _reference(given), leaves)


@pytest.mark.parametrize("sizes", [{"queries": 0}, {"points": 0}, {"dim": 0}], ids=str)
def test_nothing_to_read(sizes):
    leaves, given = _inputs(**sizes)
    leaves = {name: x.requires_grad_() for name, x in leaves.items()}
    out = _native(given)(**leaves)
    out.sum().backward()
    assert out.shape == (2, leaves["location"].shape[1], 2, leaves["value"].shape[3])
    assert not out.any()
    assert all(not x.grad.any() for x in leaves.values())


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_half_way_points_round_to_even(dtype):
    leaves, given = _inputs(dtype)
    # Pixels -1 to 9, all half-way to the next: few of them inside.
    halves = torch.randint(-1, 10, leaves["location"].shape) + 0.5
    leaves["location"] = halves.to(leaves["location"])
    assert_matches(_native(given), _reference(given), leaves)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("power", [2.7, 3.0, 0.6])
def test_gradients_on_a_token(dtype, power):
    leaves, given = _inputs(dtype, power=power, size=(5, 5))
    # Whole locations on a small canvas: many coincide with a listed token.
    leaves["location"] = leaves["location"].round()
    assert_matches(_native(given), _reference(given), leaves)


def test_gradients_vanish_at_distance_0():
    leaves, given = _inputs(counts=(1,), near=1)
    leaves["location"] = given["pos"][:, :1, None, None, None].expand_as(leaves["location"])
    leaves = {name: x.clone().requires_grad_() for name, x in leaves.items()}
    _native(given)(**leaves).sum().backward()
    assert not leaves["location"].grad.any()
    assert not leaves["power"].grad.any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -1e30])
def test_wild_locations_stay_inside_the_table(bad):
    leaves, given = _inputs(torch.float32)
    calm = _native(given)(**leaves)
    leaves["location"][1, 5, 1, 2, 3] = bad
    leaves = {name: x.requires_grad_() for name, x in leaves.items()}
    out = _native(given)(**leaves)
    out.sum().backward()
    same = torch.ones_like(out, dtype=torch.bool)
    same[1, 5, 1] = False
    assert torch.equal(out[same], calm[same])
    if math.isnan(bad):
        assert out[1, 5, 1].isnan().all()


def test_inputs_need_not_be_contiguous():
    leaves, given = _inputs(torch.float32)
    leaves = {name: scattered_memory(x) for name, x in leaves.items()}
    given = {name: scattered_memory(x) for name, x in given.items()}
    assert_matches(_native(given), _reference(given), leaves)


def test_a_number_as_power():
    leaves, given = _inputs(torch.float32)
    want = _native(given)(**leaves)
    assert torch.equal(_native(given)(**{**leaves, "power": 2.7}), want)


def test_same_bits_with_any_threads():
    leaves, given = _inputs(
        torch.float32, counts=(60, 200), queries=300, heads=3, dim=32, size=(20, 30)
    )
    leaves = {name: x.requires_grad_() for name, x in leaves.items()}
    grad = torch.randn(2, 300, 3, 32)

    def run():
        out = _native(given)(**leaves)
        return out.detach(), *torch.autograd.grad(out, list(leaves.values()), grad)

    assert_same_with_any_threads(run)


@pytest.mark.parametrize("power", [2.7, 3.0])
def test_gradcheck(power):
    leaves, given = _inputs(counts=(3, 9), dim=3, queries=2, points=2, size=(5, 5), power=power)
    # Away from tokens, and from half-way points, where the choice of the pixel jumps.
    whole = leaves["location"].floor()
    leaves["location"] = whole + 0.1 + 0.3 * (leaves["location"] - whole)
    assert torch.autograd.gradcheck(_native(given), [x.requires_grad_() for x in leaves.values()])


def test_opcheck():
    leaves, given = _inputs(torch.float32, dim=5, queries=3)
    leaves = {name: x.requires_grad_() for name, x in leaves.items()}
    value, *rest = leaves.values()
    args = (value, *given.values(), *rest)
    torch.library.opcheck(torch.ops.aff_seg.deformable_points.default, args)
    torch.library.opcheck(
        torch.ops.aff_seg.deformable_points_backward.default,
        (torch.randn(2, 3, 2, 5), *(x.detach() for x in args)),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"table": torch.full((2, 3, 7, 9, 4), 57).int()},
            IndexError,
            "table must lie in -1 to 56, got 57 to 57",
        ),
        (
            {"table": torch.full((2, 3, 7, 9, 4), -2).int()},
            IndexError,
            "table must lie in -1 to 56, got -2 to -2",
        ),
        ({"table": torch.zeros(2, 3, 7, 9, 4).long()}, ValueError, "table must be int32, got Long"),
        ({"table": torch.zeros(2, 3, 0, 9, 4).int()}, ValueError, "table must cover a canvas"),
        ({"pos": torch.zeros(2, 57, 2)}, ValueError, "pos must be Double beside .* got Float"),
        (
            {"location": torch.zeros(2, 21, 2, 3, 4, 2)},
            ValueError,
            "location must be Double, got Float",
        ),
        ({"power": torch.ones(2).double()}, ValueError, "power must be one number, got 2"),
        ({"value": torch.zeros(2, 57, 2, 24).int()}, ValueError, "value must be floating .* got I"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    leaves, given = _inputs()
    with pytest.raises(error, match=message):
        torch.ops.aff_seg.deformable_points(**{**leaves, **given, **change})
