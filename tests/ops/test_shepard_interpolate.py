"""The native ``shepard_interpolate`` against its reference."""

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


def _inputs(dtype=F64, *, count=45, channels=37, queries=70, near=4, power=2.7):
    exact = accumulating(dtype)
    leaves = {
        "feat": torch.randn(2, count, channels, dtype=exact).to(dtype),
        "power": torch.tensor([power], dtype=exact),
    }
    pos = torch.randint(0, 12, (2, count, 2)).to(exact)
    query = torch.rand(2, queries, 2, dtype=exact) * 12
    # Some queries on tokens, and some far outside.
    query[:, : queries // 4] = pos[:, :1]
    query[:, -(queries // 8) :] += 300
    index = torch.randint(0, count, (2, queries, near)).int()
    index[:, ::3, :1] = 0
    return leaves, {"pos": pos, "query": query, "index": index}


def _native(given):
    return lambda feat, power: ops.shepard_interpolate(feat, *given.values(), power)


def _reference(given):
    pos, query, index = given.values()
    return lambda feat, power: reference.shepard_interpolate(
        feat, pos.double(), query.double(), index, power
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("power", [2.7, 3.0, 2.0, 0.5])
def test_matches_reference(dtype, power):
    leaves, given = _inputs(dtype, power=power)
    assert_matches(_native(given), _reference(given), leaves)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
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
    leaves, given = _inputs(dtype, **sizes)
    assert_matches(_native(given), _reference(given), leaves)


@pytest.mark.parametrize("sizes", [{"queries": 0}, {"channels": 0}], ids=str)
def test_nothing_to_read(sizes):
    leaves, given = _inputs(**sizes)
    leaves = {name: x.requires_grad_() for name, x in leaves.items()}
    out = _native(given)(**leaves)
    out.sum().backward()
    assert out.shape == (*given["index"].shape[:2], leaves["feat"].shape[2])
    assert all(not x.grad.any() for x in leaves.values())


def test_a_number_as_power():
    leaves, given = _inputs(torch.float32)
    got = ops.shepard_interpolate(leaves["feat"], *given.values(), 2.7)
    assert torch.equal(got, _native(given)(**leaves))


def test_inputs_need_not_be_contiguous():
    leaves, given = _inputs(torch.float32)
    leaves["feat"] = scattered_memory(leaves["feat"])
    given = {name: scattered_memory(x) for name, x in given.items()}
    assert_matches(_native(given), _reference(given), leaves)


def test_a_query_on_a_token_reads_it():
    pos = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))[None]
    feat = torch.randn(1, 9, 5)
    index, _ = reference.knn(pos, pos, 4)
    power = torch.tensor([2.7], requires_grad=True)
    out = ops.shepard_interpolate(feat, pos, pos, index, power)
    torch.testing.assert_close(out, feat)
    out.sum().backward()
    assert power.grad.isfinite().all()


def test_same_bits_with_any_threads():
    leaves, given = _inputs(torch.float32, count=700, queries=3000, channels=48)
    leaves = {name: x.requires_grad_() for name, x in leaves.items()}
    grad = torch.randn(2, 3000, 48)

    def run():
        out = _native(given)(**leaves)
        return out.detach(), *torch.autograd.grad(out, list(leaves.values()), grad)

    assert_same_with_any_threads(run)


@pytest.mark.parametrize("power", [2.7, 3.0])
def test_gradcheck(power):
    leaves, given = _inputs(count=7, channels=3, queries=8, power=power)
    assert torch.autograd.gradcheck(_native(given), [x.requires_grad_() for x in leaves.values()])


def test_opcheck():
    leaves, given = _inputs(torch.float32, count=9, channels=5, queries=6)
    args = (leaves["feat"].requires_grad_(), *given.values(), leaves["power"].requires_grad_())
    torch.library.opcheck(torch.ops.aff_seg.shepard_interpolate.default, args)
    torch.library.opcheck(
        torch.ops.aff_seg.shepard_interpolate_backward.default,
        (torch.randn(2, 6, 5), *(x.detach() for x in args)),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"index": torch.full((2, 70, 4), 45).int()},
            IndexError,
            "index must lie in 0 to 44, got 45 to 45",
        ),
        (
            {"index": torch.full((2, 70, 4), -1).int()},
            IndexError,
            "index must lie in 0 to 44, got -1 to -1",
        ),
        ({"index": torch.zeros(2, 70, 4)}, ValueError, "index must be int32, got Float"),
        ({"pos": torch.zeros(2, 45, 2)}, ValueError, "pos must be Double beside .* got Float"),
        ({"query": torch.zeros(2, 70, 2)}, ValueError, "query must be Double, got Float"),
        ({"power": torch.ones(2).double()}, ValueError, "power must be one number, got 2"),
        ({"feat": torch.zeros(2, 45, 37).int()}, ValueError, "feat must be floating .* got Int"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    leaves, given = _inputs()
    with pytest.raises(error, match=message):
        torch.ops.aff_seg.shepard_interpolate(**{**leaves, **given, **change})
