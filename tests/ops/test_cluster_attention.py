"""The native attention over clusters against its reference."""

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
from op_inputs import attention_inputs

from aff_seg import ops

pytestmark = needs_native

OP = "cluster_attention"
F32, F64 = torch.float32, torch.float64
SIZES = {
    "ragged last cluster": {"dim": 32},
    "as in AFF": {"batch": 1, "count": 136, "heads": 4, "nearest": 6},
    "as in AFF-Base": {"batch": 1, "count": 97, "dim": 32, "m": 24},
    "m = 1": {"count": 30, "dim": 24, "m": 1, "nearest": 9},
    "m = 3": {"count": 31, "heads": 1, "m": 3, "nearest": 5},
    "m = 20": {"count": 90, "m": 20, "nearest": 4},
    "N = 1": {"count": 1, "m": 1, "nearest": 1},
    "N < m": {"count": 5, "nearest": 1},
    "m beyond any N": {"count": 5, "m": 2**62, "nearest": 1},
    "R = 1": {"count": 40, "dim": 32, "nearest": 1},
    "global": {"count": 47, "dim": 32, "m": 47, "nearest": 1},
    "D = 1": {"count": 33, "dim": 1, "m": 5, "nearest": 4},
    "D = 3": {"count": 33, "heads": 3, "dim": 3, "m": 4},
    "D = 24": {"count": 44, "dim": 24, "nearest": 4},
    "D = 64": {"count": 40, "heads": 1, "dim": 64},
    "many heads and neighbours": {"batch": 1, "count": 620, "heads": 8, "nearest": 12},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_matches_reference(sizes, dtype):
    assert_matches(OP, *attention_inputs(dtype, **sizes))


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_a_cluster_listed_twice_counts_twice(dtype):
    leaves, given = attention_inputs(dtype)
    given["clusters"] = given["clusters"][..., [0, 1, 0, 0]]
    assert_matches(OP, leaves, given)


@pytest.mark.parametrize(
    "sizes",
    [
        {"count": 7, "dim": 3, "m": 3, "nearest": 2},
        {"batch": 1, "count": 6, "heads": 1, "dim": 2, "m": 6, "nearest": 1},
        {"batch": 1, "count": 5, "dim": 1, "m": 1, "nearest": 3},
    ],
    ids=str,
)
def test_gradcheck(sizes):
    leaves, given = attention_inputs(**sizes)

    def run(*values):
        return native(OP, given)(**dict(zip(leaves, values, strict=True)))

    assert torch.autograd.gradcheck(run, list(requiring_grad(leaves).values()))


def test_exponential_is_accurate():
    """With one neighbour of logit x, value 1 and a blank token of zeros: the logistic function."""
    x = torch.linspace(-87, 20, 20001).view(1, -1, 1, 1)
    count = x.shape[1]
    clusters = torch.arange(count, dtype=torch.int32).view(1, -1, 1)
    one, zero = torch.ones_like(x), torch.zeros(1)
    got = ops.cluster_attention(
        *(one, x, one, torch.zeros(1, count, 2), clusters, 1),
        *(torch.zeros(1, 5), zero, zero, zero),
    )
    want = x.double().sigmoid()
    assert ((got - want) / want).abs().max() < 4e-7


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("bias", [1e4, -1e4])
def test_extreme_logits(bias, dtype):
    leaves, given = attention_inputs(dtype)
    # Logits of 1e4 are known to 1e-3 in float32.
    biased = {**leaves, "pos_bias": leaves["pos_bias"] + bias}
    assert_matches(OP, biased, given, 1e-2 if dtype == F32 else 1e-10)
    leaves["q"] = leaves["q"] * 1e4
    got = results(OP, leaves, given, torch.randn_like(leaves["q"]))
    assert all(x.isfinite().all() for x in got.values())


@pytest.mark.parametrize("sizes", [{"count": 0, "nearest": 0}, {"heads": 0}, {"dim": 0}], ids=str)
def test_nothing_to_do(sizes):
    assert_vanishing(OP, *attention_inputs(F32, **sizes))


def test_no_clusters_leave_the_blank_token():
    leaves, given = attention_inputs(F32, nearest=0)
    grad = torch.randn(2, 50, 2, 16)
    got = results(OP, leaves, given, grad)
    torch.testing.assert_close(got.pop("result"), leaves["blank_v"].view(2, 16).expand_as(grad))
    torch.testing.assert_close(got.pop("blank_v"), grad.sum((0, 1)).flatten())
    assert not any(x.any() for x in got.values())
