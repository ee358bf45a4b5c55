"""The native ``point_conv`` against its reference."""

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
EPS = 1e-5


def _inputs(dtype=F64, *, count=61, channels=37, queries=29, m=8, nearest=3, inner=4, scored=True):
    """Differentiable inputs by name, and the others."""
    exact = accumulating(dtype)
    num_clusters = -(-count // m)
    leaves = {
        "feat": torch.randn(2, count, channels, dtype=exact).to(dtype),
        "weight": torch.randn(inner, 5, dtype=exact),
        "bias": torch.randn(inner, dtype=exact),
        "norm_weight": torch.randn(inner, dtype=exact),
        "norm_bias": torch.randn(inner, dtype=exact),
    }
    if scored:
        leaves["score"] = torch.rand(2, count, dtype=exact)
    order = torch.rand(2, queries, num_clusters).argsort(-1)[..., :nearest]
    given = {
        "pos": torch.randint(0, 9, (2, count, 2)).to(exact),
        "centre": torch.randint(0, count, (2, queries)).int(),
        "clusters": order.int(),
        "m": m,
    }
    return leaves, given


def _native(given, sign=1):
    def run(feat, weight, bias, norm_weight, norm_bias, score=None):
        return ops.point_conv(
            feat,
            score,
            *given.values(),
            weight,
            bias,
            norm_weight,
            norm_bias,
            norm_eps=EPS,
            sign=sign,
        )

    return run


def _reference(given, sign=1):
    pos, *rest = given.values()

    def run(feat, weight, bias, norm_weight, norm_bias, score=None):
        return reference.point_conv(
            feat, score, pos.double(), *rest, weight, bias, norm_weight, norm_bias, EPS, sign
        )

    return run


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("sign", [1, -1])
def test_matches_reference(dtype, scored, sign):
    # 61 tokens in clusters of 8: the last is short.
    leaves, given = _inputs(dtype, scored=scored)
    assert_matches(_native(given, sign), _reference(given, sign), leaves)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize(
    "sizes",
    [
        {"count": 1, "queries": 1, "m": 1, "nearest": 1},
        {"count": 1, "queries": 3, "m": 8, "nearest": 1},
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
    leaves, given = _inputs(dtype, **sizes)
    assert_matches(_native(given), _reference(given), leaves)


@pytest.mark.parametrize("sizes", [{"queries": 0}, {"nearest": 0}, {"channels": 0}], ids=str)
def test_nothing_to_sum(sizes):
    leaves, given = _inputs(**sizes)
    leaves = {name: x.requires_grad_() for name, x in leaves.items()}
    out = _native(given)(**leaves)
    out.sum().backward()
    assert out.shape == (2, given["centre"].shape[1], 4, leaves["feat"].shape[2])
    assert not out.any()
    assert all(not x.grad.any() for x in leaves.values())


def test_inputs_need_not_be_contiguous():
    leaves, given = _inputs(torch.float32)
    leaves = {name: scattered_memory(x) for name, x in leaves.items()}
    given = {name: x if name == "m" else scattered_memory(x) for name, x in given.items()}
    assert_matches(_native(given), _reference(given), leaves)


def test_same_bits_with_any_threads():
    leaves, given = _inputs(torch.float32, count=2000, queries=900, m=8, nearest=6, channels=48)
    leaves = {name: x.requires_grad_() for name, x in leaves.items()}
    grad = torch.randn(2, 900, 4, 48)

    def run():
        out = _native(given)(**leaves)
        return out.detach(), *torch.autograd.grad(out, list(leaves.values()), grad)

    assert_same_with_any_threads(run)


@pytest.mark.parametrize("sign", [1, -1])
def test_gradcheck(sign):
    leaves, given = _inputs(count=11, channels=3, queries=4, m=4, nearest=2)
    names = list(leaves)

    def run(*values):
        return _native(given, sign)(**dict(zip(names, values, strict=True)))

    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in leaves.values()])


@pytest.mark.parametrize("scored", [True, False])
def test_opcheck(scored):
    leaves, given = _inputs(torch.float32, count=21, channels=5, queries=6, scored=scored)
    leaves = {name: x.requires_grad_() for name, x in leaves.items()}
    learned = [leaves[name] for name in ("weight", "bias", "norm_weight", "norm_bias")]
    args = (leaves["feat"], leaves.get("score"), *given.values(), *learned, EPS, 1)
    torch.library.opcheck(torch.ops.aff_seg.point_conv.default, args)
    detached = [x.detach() if isinstance(x, torch.Tensor) else x for x in args]
    torch.library.opcheck(
        torch.ops.aff_seg.point_conv_backward.default,
        (torch.randn(2, 6, 4, 5), *detached),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"centre": torch.full((2, 29), 61).int()},
            IndexError,
            "centre must lie in 0 to 60, got 61 to 61",
        ),
        (
            {"clusters": torch.full((2, 29, 3), -1).int()},
            IndexError,
            "clusters must lie in 0 to 7, got -1 to -1",
        ),
        ({"clusters": torch.zeros(2, 29, 3).long()}, ValueError, "clusters must be int32, got Lon"),
        ({"pos": torch.zeros(2, 61, 2)}, ValueError, "pos must be Double beside .* got Float"),
        ({"score": torch.zeros(2, 61)}, ValueError, "score must be Double, got Float"),
        ({"bias": torch.zeros(4)}, ValueError, "bias must be Double, got Float"),
        ({"m": 0}, ValueError, "m must be at least 1, got 0"),
        ({"sign": 2}, ValueError, "sign must be 1 or -1, got 2"),
        ({"feat": torch.zeros(2, 61, 37).int()}, ValueError, "feat must be floating .* got Int"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    leaves, given = _inputs()
    with pytest.raises(error, match=message):
        torch.ops.aff_seg.point_conv(**{**leaves, **given, "norm_eps": EPS, "sign": 1, **change})
