"""The native ``shepard_interpolate`` against its reference."""

import pytest
import torch
from native_op import DTYPES, assert_matches, assert_vanishing, native, needs_native, requiring_grad
from op_inputs import shepard_inputs

from aff_seg import ops
from aff_seg.ops import reference

pytestmark = needs_native

OP = "shepard_interpolate"
BOTH = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("power", [2.7, 3.0, 2.0, 0.5, 0.0, -1.3])
def test_matches_reference(dtype, power):
    assert_matches(OP, *shepard_inputs(dtype, power=power))


@BOTH
@pytest.mark.parametrize(
    "sizes",
    [
        {"count": 1, "queries": 1, "near": 1, "channels": 1},
        {"count": 1, "queries": 9, "near": 4},
        {"near": 1},
        {"count": 400, "queries": 1000, "near": 9, "channels": 256},
    ],
    ids=str,
)
def test_sizes(dtype, sizes):
    assert_matches(OP, *shepard_inputs(dtype, **sizes))


@pytest.mark.parametrize(
    "sizes",
    [
        {"queries": 0},
        {"channels": 0},
        {"near": 0},
        {"count": 0, "queries": 0},
        {"count": 0, "near": 0},
    ],
    ids=str,
)
def test_nothing_to_read(sizes):
    assert_vanishing(OP, *shepard_inputs(torch.float32, **sizes))


@BOTH
@pytest.mark.parametrize("power", [60.0, 1e3, 1e12, 1e18, 1e30, -60.0, -1e18])
def test_powers_beyond_the_range_of_numbers(power, dtype):
    """The largest power counts as finite: what is nearer still has the larger weight."""
    pos = torch.tensor([[[0.5, 0.0], [3.0, 0.0], [9.0, 0.0]]], dtype=dtype)
    query, index = torch.zeros(1, 1, 2, dtype=dtype), torch.arange(3, dtype=torch.int32)
    feat = torch.tensor([[[1.0], [5.0], [7.0]]], dtype=dtype, requires_grad=True)
    exponent = torch.tensor([power], dtype=dtype, requires_grad=True)
    out = ops.shepard_interpolate(feat, pos, query, index.view(1, 1, 3), exponent)
    # d2 of 0.25, 9 and 81: powers of 0 against huge ones, or the other way round.
    want = 1.0 if power > 0 else 6.0
    torch.testing.assert_close(out, torch.full_like(out, want))
    out.backward()
    assert feat.grad.isfinite().all() and exponent.grad.isfinite().all()


def test_a_number_as_power():
    leaves, given = shepard_inputs(torch.float32)
    got = native(OP, given)(**{**leaves, "power": 2.7})
    assert torch.equal(got, native(OP, given)(**leaves))


def test_a_query_on_a_token_reads_it():
    pos = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))[None]
    feat = torch.randn(1, 9, 5)
    index, _ = reference.knn(pos, pos, 4)
    power = torch.tensor([2.7], requires_grad=True)
    out = ops.shepard_interpolate(feat, pos, pos, index, power)
    torch.testing.assert_close(out, feat)
    out.sum().backward()
    assert power.grad.isfinite().all()


@pytest.mark.parametrize("power", [2.7, 3.0])
def test_gradcheck(power):
    leaves, given = shepard_inputs(count=7, channels=3, queries=8, power=power)

    def run(*values):
        return native(OP, given)(**dict(zip(leaves, values, strict=True)))

    assert torch.autograd.gradcheck(run, list(requiring_grad(leaves).values()))
