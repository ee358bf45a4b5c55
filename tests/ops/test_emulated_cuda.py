"""The CUDA kernels, compiled for a CPU, against the references.

This shows that they index and add up what they should. It shows nothing of speed, nor that a GPU
agrees: `make gpu-check` does.
"""

import math

import pytest
import torch
from native_op import DTYPES, assert_near, needs_native, scattered_memory
from op_inputs import INPUTS, deformable_inputs, knn_inputs

from aff_seg import ops
from aff_seg.ops import reference

pytestmark = [needs_native, pytest.mark.timeout(900)]
# (operator, what differs from the usual inputs)
CASES = [
    ("cluster_attention", {}),
    ("cluster_attention", {"batch": 1, "count": 33, "heads": 1, "dim": 32, "nearest": 5}),
    ("cluster_attention", {"batch": 1, "count": 50, "dim": 32, "m": 24, "nearest": 2}),
    ("cluster_attention", {"batch": 1, "count": 30, "dim": 32, "m": 30, "nearest": 1}),
    ("cluster_attention", {"count": 21, "m": 1, "nearest": 9, "dim": 24}),
    ("cluster_attention", {"count": 31, "m": 3, "nearest": 5, "dim": 3, "heads": 3}),
    ("cluster_attention", {"count": 1, "nearest": 1}),
    ("cluster_attention", {"count": 5, "nearest": 1, "dim": 1}),
    ("point_conv", {}),
    ("point_conv", {"channels": 64, "scored": False, "sign": -1, "m": 1, "nearest": 9}),
    ("point_conv", {"count": 20, "m": 20, "nearest": 1, "channels": 1, "inner": 3}),
    ("point_conv", {"count": 5, "m": 2**62, "nearest": 1, "inner": 1}),
    ("point_conv", {"count": 33, "m": 9, "nearest": 2, "channels": 16, "inner": 5}),
    # More neighbours than a block notes at a time.
    ("point_conv", {"count": 200, "queries": 2, "m": 200, "nearest": 1, "channels": 8}),
    ("shepard_interpolate", {}),
    ("shepard_interpolate", {"channels": 64, "power": 3.0}),
    ("shepard_interpolate", {"near": 40, "channels": 8, "batch": 1, "queries": 9}),
    ("shepard_interpolate", {"near": 9, "channels": 132, "count": 5, "queries": 37}),
    ("shepard_interpolate", {"near": 1, "channels": 5, "count": 1}),
    ("deformable_points", {}),
    ("deformable_points", {"counts": (2, 5), "dim": 32, "points": 2, "power": 3.0}),
    # More samples than a block notes at a time, and a sample that it notes in parts.
    ("deformable_points", {"counts": (4, 5), "points": 113, "queries": 3, "dim": 72, "heads": 1}),
    ("deformable_points", {"counts": (250,), "near": 213, "points": 1, "queries": 2, "dim": 16}),
]


def _arguments(operator, given: dict) -> list:
    return [given.get(argument.name) for argument in operator.default._schema.arguments]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "options"), CASES)
def test_agrees_with_the_reference(emulated, name, options, dtype):
    leaves, given = INPUTS[name](dtype, **options)
    values = {**leaves, **given}
    arguments = _arguments(getattr(emulated, name), values)
    exact = {key: x.detach().double().requires_grad_() for key, x in leaves.items()}
    wide = {
        key: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for key, x in given.items()
    }
    want = getattr(reference, name)(**exact, **wide)
    got = getattr(emulated, name)(*arguments)
    out = got
    if name == "cluster_attention":
        out, lse = got
        start, place = emulated.cluster_readers(given["clusters"], -(-out.shape[1] // given["m"]))
        values |= {"out": out, "lse": lse, "start": start, "place": place}
    assert out.dtype == dtype
    assert_near(out, want, "result", 0.0)

    grad = torch.randn(want.shape, dtype=torch.float64).to(dtype)
    want.backward(grad.double())
    backward = getattr(emulated, f"{name}_backward")
    arguments = _arguments(backward, {**values, "grad": grad})
    grads, again = backward(*arguments), backward(*arguments)
    learned = [a.name for a in getattr(emulated, name).default._schema.arguments]
    learned = [key for key in learned if key in leaves or key == "score"]
    assert len(grads) == len(learned)
    for key, value, twice in zip(learned, grads, again, strict=True):
        assert torch.equal(value, twice), f"gradient of {key} does not repeat"
        if key in leaves:
            assert value.dtype == leaves[key].dtype and value.is_contiguous()
            scale = (out.numel() / max(1, leaves[key].numel())) ** 0.5
            assert_near(value, exact[key].grad, f"gradient of {key}", scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"queries": 300, "count": 120, "k": 9}, {"count": 1, "k": 1}, {"k": 7}]
)
def test_neighbours_are_those_of_the_cpu(emulated, options, dtype):
    _, given = knn_inputs(dtype, **options)
    for scale in (1.0, 3.0):
        # The second time on whole positions, with ties and points that coincide.
        query, database = (
            given[key] if scale == 1.0 else (given[key] * scale).round()
            for key in ("query", "database")
        )
        got = emulated.knn(query, database, given["k"])
        want = ops.knn(query, database, given["k"])
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def _hard_points() -> list[torch.Tensor]:
    """Sets of (count, 2) points on which a uniform grid is of little use, or that tie."""
    spread = torch.rand(900, 2, dtype=torch.float64) - 0.3
    whole = (spread * 7).round()
    far = torch.tensor([[1e6, -3e5]], dtype=torch.float64)
    spots = torch.cat([spread[::9] * 10.0**power + 1e4 * power for power in range(-4, 5)])
    line = torch.stack((whole[:, 0], torch.full((900,), -2.0, dtype=torch.float64)), -1)
    return [
        whole,
        torch.cat((whole[1:] * 0 + 5, far)),
        torch.cat((far, spread[1:] * 1e-3)),
        torch.cat((whole[1:] * 1e-3, far)),
        torch.where(whole > 0, 0.0, -0.0).double(),
        spots,
        line,
        line.flip(1)[:33],
        spread[:, :1].expand(-1, 2),
        spread * 1e30,
        spread * 1e-30,
        # Distances that are infinite, or 0 where points do not coincide.
        spread * 3e38,
        spread * 1e-44,
    ]


@pytest.mark.parametrize("order", range(4))
def test_neighbours_among_hard_points(emulated, monkeypatch, order):
    """Whatever the order in which threads take turns."""
    monkeypatch.setenv("AFF_SEG_EMULATED_ORDER", str(order))
    for i, points in enumerate(_hard_points()):
        query = torch.cat((points[::99], points.mean(0, keepdim=True) + 0.5))
        k = min((4, 20, 9, 1, 70)[(i + order) % 5], len(points))
        dtype = (torch.float32, torch.float64)[(i + order // 2) % 2]
        arguments = (query[None].to(dtype), points[None].to(dtype), k)
        for got, want in zip(emulated.knn(*arguments), ops.knn(*arguments), strict=True):
            assert torch.equal(got, want), i


@pytest.mark.parametrize("shared", ["query", "database", "both"])
def test_neighbours_of_shared_positions(emulated, shared):
    _, given = knn_inputs(batch=3, queries=40, count=30, k=4)
    query, database = (
        given[key][:1].expand(3, -1, -1) if shared in (key, "both") else given[key]
        for key in ("query", "database")
    )
    got, want = emulated.knn(query, database, 4), ops.knn(query, database, 4)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


@pytest.mark.parametrize("name", sorted(INPUTS))
def test_nothing_to_do(emulated, name):
    leaves, given = INPUTS[name](torch.float32, batch=0)
    arguments = _arguments(getattr(emulated, name), {**leaves, **given})
    got = getattr(emulated, name)(*arguments)
    out = got[0] if isinstance(got, tuple) else got
    assert out.numel() == 0


def _all_results(operators, name: str, given: dict, grad: torch.Tensor) -> list[torch.Tensor]:
    """Result and gradients, of the kernels among ``operators``."""
    arguments = _arguments(getattr(operators, name), given)
    return [
        getattr(operators, name)(*arguments),
        *getattr(operators, f"{name}_backward")(grad, *arguments),
    ]


# Sizes at which several warps share what one of them looked up, and blocks do so again and again.
SHARING = [
    ("point_conv", {"count": 97, "m": 8, "nearest": 6, "queries": 40}),
    ("point_conv", {"count": 200, "queries": 2, "m": 200, "nearest": 1, "channels": 8}),
    ("deformable_points", {"queries": 40}),
    ("deformable_points", {"counts": (4, 5), "points": 113, "queries": 3, "dim": 72, "heads": 1}),
    ("deformable_points", {"counts": (250,), "near": 213, "points": 1, "queries": 2, "dim": 16}),
]


@pytest.mark.parametrize(("name", "options"), SHARING)
def test_results_do_not_depend_on_whose_turn_it_is(emulated, monkeypatch, name, options):
    leaves, given = INPUTS[name](torch.float32, **options)
    values = {**leaves, **given}
    out = getattr(emulated, name)(*_arguments(getattr(emulated, name), values))
    grad = torch.randn(out.shape)
    want = _all_results(emulated, name, values, grad)
    for order in "123":
        monkeypatch.setenv("AFF_SEG_EMULATED_ORDER", order)
        for got, same in zip(_all_results(emulated, name, values, grad), want, strict=True):
            assert torch.equal(got, same), f"order {order}"


def _unaligned(x: torch.Tensor) -> torch.Tensor:
    """The same values, from an address that only single ones can be read from."""
    memory = torch.empty(x.numel() + 1, dtype=x.dtype)
    memory[1:] = x.flatten()
    return memory[1:].view(x.shape)


@pytest.mark.parametrize("place", [scattered_memory, _unaligned])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["point_conv", "deformable_points"])
def test_inputs_lie_anywhere(emulated, name, dtype, place):
    leaves, given = INPUTS[name](dtype)
    values = {**leaves, **given}
    out = getattr(emulated, name)(*_arguments(getattr(emulated, name), values))
    grad = torch.randn(out.shape, dtype=torch.float64).to(dtype)
    want = _all_results(torch.ops.aff_seg, name, values, grad)
    moved = {k: place(x) if isinstance(x, torch.Tensor) else x for k, x in values.items()}
    for got, near in zip(_all_results(emulated, name, moved, place(grad)), want, strict=True):
        assert_near(got, near, "result or gradient", 1.0)


@pytest.mark.parametrize("power", [2.7, 3.0])
def test_locations_on_edges_and_beyond(emulated, power):
    leaves, given = deformable_inputs(torch.float64, power=power)
    location = leaves["location"]
    # Between pixels, rounded to even ones; at tokens; and where no whole number can follow.
    location[0] = location[0].floor() + 0.5
    location[1, 7:] = location[1, 7:].round()
    wild = [math.nan, math.inf, -math.inf, 1e30, -1e30, 3e9, 2.0**63]
    location[1, : len(wild), 0, 1, 2, 0] = torch.tensor(wild, dtype=torch.float64)
    values = {**leaves, **given}
    grad = torch.randn(2, 21, 2, 24, dtype=torch.float64)
    want = _all_results(torch.ops.aff_seg, "deformable_points", values, grad)
    got = _all_results(emulated, "deformable_points", values, grad)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, equal_nan=True)
    assert want[0].isnan().any() and not want[0][1, 7:].isnan().any()


def test_point_conv_needs_tokens(emulated):
    leaves, given = INPUTS["point_conv"](torch.float32, count=0, queries=3, nearest=0)
    with pytest.raises(ValueError, match="feat must have tokens"):
        emulated.point_conv(*_arguments(emulated.point_conv, {**leaves, **given}))
