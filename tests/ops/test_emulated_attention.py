"""Attention's CUDA kernels, compiled for a CPU, where they might go wrong."""

import random

import pytest
import torch
from native_op import DTYPES, accumulating, assert_near, needs_native
from op_inputs import attention_inputs
from torch import Tensor

from aff_seg.ops import reference

pytestmark = [needs_native, pytest.mark.timeout(900)]
FIXED = ("pos", "clusters", "m")
LEARNED = ("q", "k", "v", "pos_weight", "pos_bias", "blank_k", "blank_v")
# As in AFF, with fewer tokens.
AFF = [
    {"batch": 1, "count": 150, "heads": 2, "dim": 32, "m": 8, "nearest": 6},
    {"batch": 1, "count": 60, "heads": 16, "dim": 32, "m": 8, "nearest": 6},
    {"batch": 1, "count": 250, "heads": 2, "dim": 32, "m": 24, "nearest": 6},
    {"batch": 1, "count": 130, "heads": 2, "dim": 32, "m": 130, "nearest": 1},
]


def _run(emulated, values: dict, grad: Tensor) -> dict[str, Tensor]:
    """Result, lse and gradients, by name."""
    names = [a.name for a in emulated.cluster_attention.default._schema.arguments][:-2]
    given = [values[name] for name in names]
    out, lse = emulated.cluster_attention(*given, None, None)
    count = -(-out.shape[1] // values["m"])
    readers = emulated.cluster_readers(values["clusters"], count)
    grads = emulated.cluster_attention_backward(grad, *given, out, lse, *readers)
    return {"result": out, "lse": lse, **dict(zip(LEARNED, grads, strict=True))}


def _assert_right(emulated, values: dict) -> None:
    dtype = values["q"].dtype
    wide = {name: values[name].detach().double().requires_grad_() for name in LEARNED}
    fixed = {name: values[name] for name in FIXED}
    want = reference.cluster_attention(**wide, **fixed | {"pos": fixed["pos"].double()})
    grad = torch.randn(want.shape).to(dtype)
    want.backward(grad.double())
    got = _run(emulated, values, grad)
    assert_near(got["result"], want, "result", 0.0)
    for name in LEARNED:
        scale = (want.numel() / wide[name].numel()) ** 0.5
        # Of parameters, float32 also beside features that are rounded.
        tolerance = 1e-4 if got[name].dtype != dtype else 0.0
        assert_near(got[name], wide[name].grad, f"gradient of {name}", scale, tolerance)


def _assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name, x in a.items():
        assert torch.equal(x, b[name]), name


def _inputs(dtype: torch.dtype, **sizes: int) -> dict:
    leaves, given = attention_inputs(dtype, **sizes)
    return {**leaves, **given}


def _random_case(seed: int) -> dict:
    """Any sizes; clusters listed several times, memory that is not dense."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    count = rng.choice([rng.randint(1, 9), rng.randint(1, 80)])
    sizes = {
        "batch": rng.randint(1, 2),
        "count": count,
        "heads": rng.randint(1, 4),
        "dim": rng.choice([8, 16, 32, 40, 64, 96, 128, rng.randint(1, 128)]),
        "m": rng.choice([1, 8, 24, rng.randint(1, count + 2)]),
    }
    values = _inputs(rng.choice(DTYPES), **sizes, nearest=1)
    clusters = -(-count // sizes["m"])
    near = rng.choice([1, 6, rng.randint(1, 40)])
    values["clusters"] = torch.randint(0, clusters, (sizes["batch"], count, near)).int()
    if rng.random() < 0.5:
        # One array for all, of which heads or channels may begin anywhere.
        skip, exact = rng.randint(0, 3), accumulating(values["q"].dtype)
        shape = (sizes["batch"], count, sizes["heads"], 3 * sizes["dim"] + skip)
        joined = torch.randn(shape, dtype=exact).to(values["q"].dtype)
        for i, name in enumerate("qkv"):
            values[name] = joined[..., skip + i * sizes["dim"] :][..., : sizes["dim"]]
    return values


@pytest.mark.parametrize("seed", range(16))
def test_any_sizes(emulated, seed):
    _assert_right(emulated, _random_case(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", AFF, ids=lambda sizes: f"{sizes['heads']}, {sizes['m']}")
def test_no_turn_of_the_threads_changes_a_bit(emulated, sizes, dtype, monkeypatch):
    values = _inputs(dtype, **sizes)
    _assert_right(emulated, values)
    grad = torch.randn(values["q"].shape).to(dtype)
    want = _run(emulated, values, grad)
    for order in (1, 2, 3):
        monkeypatch.setenv("AFF_SEG_EMULATED_ORDER", str(order))
        _assert_same(want, _run(emulated, values, grad))


def test_more_clusters_than_are_found_at_once(emulated):
    values = _inputs(torch.float32, batch=1, count=2300, heads=1, dim=4, m=1, nearest=14)
    _assert_right(emulated, values)


def test_a_cluster_listed_very_often(emulated):
    values = _inputs(torch.float32, batch=1, count=20, m=4, nearest=1)
    values["clusters"] = torch.zeros(1, 20, 50, dtype=torch.int32)
    values["clusters"][:, ::3, 17] = 2
    _assert_right(emulated, values)


@pytest.mark.parametrize("size", [1e4, 1e10, 1e30])
def test_extreme_logits(emulated, size):
    values = _inputs(torch.float32)
    values["q"] = values["q"] * size
    got = _run(emulated, values, torch.randn_like(values["q"]))
    assert all(x.isfinite().all() for x in got.values() if size == 1e4)
    assert got["result"].isfinite().all()
    values["pos_bias"] = values["pos_bias"] + 1e4
    values["q"] = values["q"] / size
    assert all(x.isfinite().all() for x in _run(emulated, values, values["q"]).values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_wild_values_stay_in_their_image(emulated, bad, dtype):
    values = _inputs(dtype)
    grad = torch.randn(values["q"].shape).to(dtype)
    calm = _run(emulated, values, grad)
    for name in ("q", "k", "v", "pos", "grad"):
        wild = {**values, "grad": grad}
        wild[name] = wild[name].clone()
        wild[name][1, -1] = bad
        got = _run(emulated, wild, wild["grad"])
        for part in ("result", "lse", "q", "k", "v"):
            assert torch.equal(got[part][0], calm[part][0]), (name, part)
