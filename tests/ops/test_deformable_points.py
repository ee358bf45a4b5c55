"""The native ``deformable_points`` against its reference."""

import math

import pytest
import torch
from native_op import (
    DTYPES,
    assert_matches,
    assert_vanishing,
    native,
    needs_native,
    requiring_grad,
    results,
)
from op_inputs import deformable_inputs

from aff_seg import ops

pytestmark = needs_native

OP = "deformable_points"
F32, F64 = torch.float32, torch.float64
BOTH = pytest.mark.parametrize("dtype", [F64, F32], ids=str)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("power", [2.7, 3.0, 2.0, 0.6, 0.0, -1.3])
def test_matches_reference(dtype, power):
    assert_matches(OP, *deformable_inputs(dtype, power=power))


@BOTH
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
    assert_matches(OP, *deformable_inputs(dtype, **sizes))


@pytest.mark.parametrize(
    "sizes",
    [
        {"queries": 0},
        {"points": 0},
        {"heads": 0},
        {"dim": 0},
        {"near": 0},
        {"counts": ()},
    ],
    ids=str,
)
def test_nothing_to_read(sizes):
    assert_vanishing(OP, *deformable_inputs(F32, **sizes))


@BOTH
def test_half_way_points_round_to_even(dtype):
    leaves, given = deformable_inputs(dtype)
    # Pixels -1 to 9, all half-way to the next: few of them inside.
    halves = torch.randint(-1, 10, leaves["location"].shape) + 0.5
    leaves["location"] = halves.to(leaves["location"])
    assert_matches(OP, leaves, given)


@BOTH
@pytest.mark.parametrize("power", [2.7, 3.0, 0.6])
def test_gradients_on_a_token(dtype, power):
    leaves, given = deformable_inputs(dtype, power=power, size=(5, 5))
    # Whole locations on a small canvas: many coincide with a listed token.
    leaves["location"] = leaves["location"].round()
    assert_matches(OP, leaves, given)


def test_gradients_vanish_at_distance_0():
    leaves, given = deformable_inputs(counts=(1,), near=1)
    leaves["location"] = given["pos"][:, :1, None, None, None].expand_as(leaves["location"])
    got = results(OP, leaves, given, torch.ones(2, 21, 2, 24, dtype=F64))
    assert not got["location"].any()
    assert not got["power"].any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -1e30])
def test_wild_locations_stay_inside_the_table(bad):
    leaves, given = deformable_inputs(F32)
    calm = native(OP, given)(**leaves)
    leaves["location"][1, 5, 1, 2, 3] = bad
    out = results(OP, leaves, given, torch.ones_like(calm))["result"]
    same = torch.ones_like(out, dtype=torch.bool)
    same[1, 5, 1] = False
    assert torch.equal(out[same], calm[same])
    if math.isnan(bad):
        assert out[1, 5, 1].isnan().all()


def test_canvas_wider_than_float32_counts():
    """16777219, the last column, is no float32; the nearest is one beyond the canvas."""
    width = 2**24 + 4
    table = torch.zeros(1, 1, 1, width, 1, dtype=torch.int32)
    table[..., -1, :] = 1
    location = torch.tensor([1e9, 0.0]).view(1, 1, 1, 1, 1, 2)
    value, one = torch.tensor([3.0, 5.0]).view(1, 2, 1, 1), torch.ones(1, 1, 1, 1, 1)
    assert ops.deformable_points(value, torch.zeros(1, 2, 2), table, location, one, 3.0) == 5


def test_a_number_as_power():
    leaves, given = deformable_inputs(F32)
    got = native(OP, given)(**{**leaves, "power": 2.7})
    assert torch.equal(got, native(OP, given)(**leaves))


@pytest.mark.parametrize("power", [2.7, 3.0])
def test_gradcheck(power):
    leaves, given = deformable_inputs(
        counts=(3, 9), dim=3, queries=2, points=2, size=(5, 5), power=power
    )
    # Away from tokens, and from half-way points, where the choice of the pixel jumps.
    whole = leaves["location"].floor()
    leaves["location"] = whole + 0.1 + 0.3 * (leaves["location"] - whole)

    def run(*values):
        return native(OP, given)(**dict(zip(leaves, values, strict=True)))

    assert torch.autograd.gradcheck(run, list(requiring_grad(leaves).values()))
