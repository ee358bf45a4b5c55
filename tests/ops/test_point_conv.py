"""The native ``point_conv`` against its reference."""

import pytest
import torch
from native_op import DTYPES, assert_matches, assert_vanishing, native, needs_native, requiring_grad
from op_inputs import conv_inputs

pytestmark = needs_native

OP = "point_conv"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("sign", [1, -1])
def test_matches_reference(dtype, scored, sign):
    # 61 tokens in clusters of 8: the last is short.
    assert_matches(OP, *conv_inputs(dtype, scored=scored, sign=sign))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "sizes",
    [
        {"count": 1, "queries": 1, "m": 1, "nearest": 1},
        {"count": 1, "queries": 3, "m": 8, "nearest": 1},
        {"count": 5, "m": 2**62, "nearest": 1},
        {"count": 50, "queries": 90, "m": 1, "nearest": 9, "channels": 64},
        {"count": 300, "queries": 200, "m": 24, "nearest": 4, "channels": 160},
        {"count": 700, "queries": 3, "m": 700, "nearest": 1, "channels": 8},
        {"channels": 1},
        {"inner": 1},
        {"inner": 7},
        {"inner": 16},
    ],
    ids=str,
)
def test_sizes(dtype, sizes):
    assert_matches(OP, *conv_inputs(dtype, **sizes))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_cluster_listed_twice_counts_twice(dtype):
    leaves, given = conv_inputs(dtype)
    given["clusters"] = given["clusters"][..., [0, 1, 0, 0]]
    assert_matches(OP, leaves, given)


@pytest.mark.parametrize(
    "sizes",
    [
        {"queries": 0},
        {"nearest": 0},
        {"channels": 0},
        {"inner": 0},
        {"count": 0, "queries": 0, "nearest": 0},
    ],
    ids=str,
)
def test_nothing_to_sum(sizes):
    assert_vanishing(OP, *conv_inputs(torch.float32, **sizes))


@pytest.mark.parametrize("sign", [1, -1])
def test_gradcheck(sign):
    leaves, given = conv_inputs(count=11, channels=3, queries=4, m=4, nearest=2, sign=sign)

    def run(*values):
        return native(OP, given)(**dict(zip(leaves, values, strict=True)))

    assert torch.autograd.gradcheck(run, list(requiring_grad(leaves).values()))
