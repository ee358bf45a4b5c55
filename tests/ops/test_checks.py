"""Wrong arguments of the native operators are refused in a sentence, however they are called."""

import math

import pytest
import torch
from native_op import needs_native, raw_arguments
from op_inputs import (
    INPUTS,
    attention_inputs,
    conv_inputs,
    knn_inputs,
    shepard_inputs,
)

from aff_seg import ops

# Kernels of a GPU assert what depends on values, where a CPU's tell it in a sentence.
pytestmark = [needs_native, pytest.mark.cpu_kernels]

F32 = torch.float32
FORWARD = {"knn": knn_inputs, **INPUTS}


def _arguments(name: str) -> dict:
    """Arguments of an operator, or of its backward one, by name."""
    forward = name.removesuffix("_backward")
    leaves, given = FORWARD[forward](F32)
    values = {**leaves, **given}
    if name != forward:
        out = getattr(torch.ops.aff_seg, forward)(*raw_arguments(forward, values))
        if forward == "cluster_attention":
            values["out"], values["lse"] = out
            values["start"], values["place"] = ops.cluster_readers(values["clusters"], 7)
        values["grad"] = torch.zeros_like(out if torch.is_tensor(out) else out[0])
    return values


def _run(name: str, values: dict):
    return getattr(torch.ops.aff_seg, name)(*raw_arguments(name, values))


def _tensors(forward: str) -> list[str]:
    leaves, given = FORWARD[forward](F32)
    return [key for key, x in {**leaves, **given}.items() if torch.is_tensor(x)]


# All tensors of forward operators, and those that backward ones have besides.
PLACES = [(name, key) for name in FORWARD for key in _tensors(name)]
PLACES += [(f"{name}_backward", "grad") for name in INPUTS]
PLACES += [("cluster_attention_backward", key) for key in ("out", "lse", "start", "place")]
ANYWHERE = pytest.mark.parametrize(("name", "key"), PLACES)
# Axes whose sizes no other argument shares.
FREE = {
    ("knn", "query"): (1,),
    ("knn", "database"): (1,),
    ("cluster_attention", "clusters"): (2,),
    ("point_conv", "feat"): (2,),
    ("point_conv", "clusters"): (2,),
    ("shepard_interpolate", "feat"): (2,),
    ("shepard_interpolate", "index"): (2,),
    ("deformable_points", "value"): (3,),
    ("deformable_points", "table"): (2, 3, 4),
}


def _longer(x: torch.Tensor, axis: int) -> torch.Tensor:
    return torch.cat((x, x.narrow(axis, 0, 1)), axis)


@ANYWHERE
def test_shapes(name, key):
    values = _arguments(name)
    right = values[key]
    wrong = [right[None]] + [right[0]] * (key != "power")
    for axis in range(right.dim()):
        if axis in FREE.get((name, key), ()):
            _run(name, {**values, key: _longer(right, axis)})
        else:
            wrong += [_longer(right, axis), right.narrow(axis, 0, right.shape[axis] - 1)]
    for x in wrong[1:] if key == "power" else wrong:
        with pytest.raises(ValueError, match=r"^\w+ must (have shape \(|be one number).*, got \["):
            _run(name, {**values, key: x})


@ANYWHERE
def test_dtypes(name, key):
    values = _arguments(name)
    for dtype in {torch.int32, torch.int64, F32, torch.float64, torch.bool} - {values[key].dtype}:
        with pytest.raises(ValueError, match=r"^\w+ must be \w+.*, got (Int|Long|Double|Float|Bo)"):
            _run(name, {**values, key: values[key].to(dtype)})


@ANYWHERE
def test_devices(name, key):
    values = _arguments(name)
    with pytest.raises(ValueError, match=r"^\w+ must be on (cpu|meta), got (cpu|meta)$"):
        _run(name, {**values, key: values[key].to("meta")})


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("knn", "k", 0, "k must be 1 to 7, got 0"),
        ("knn", "k", 8, "k must be 1 to 7, got 8"),
        ("knn", "query", torch.zeros(2, 5, 2).half(), "query must be float32 or float64, got Half"),
        ("knn", "query", torch.full((2, 5, 2), math.nan), "query must be finite, got nan"),
        ("knn", "database", torch.full((2, 7, 2), -math.inf), "database must be finite, got -inf"),
        ("knn", "database", torch.zeros(2, 7, 3), r"database must have shape \(2, N, 2\), got \[2"),
        ("cluster_attention", "m", 0, "m must be at least 1, got 0"),
        ("cluster_attention", "q", torch.zeros(2, 50, 2, 16).int(), "q must be float32, float64, "),
        ("cluster_attention", "v", torch.zeros(2, 50, 2, 16).half(), "v must be Float, got Half"),
        ("cluster_attention", "blank_k", torch.zeros(31), r"blank_k must have shape \(32\), got"),
        ("point_conv", "m", -(2**63), "m must be at least 1, got -9223372036854775808"),
        ("point_conv", "sign", 2, "sign must be 1 or -1, got 2"),
        ("point_conv", "norm_eps", -1.0, "norm_eps must be at least 0, got -1"),
        ("point_conv", "norm_eps", math.nan, "norm_eps must be at least 0, got nan"),
        ("point_conv", "pos", torch.zeros(2, 61, 2).double(), "pos must be Float beside features"),
        ("point_conv", "centre", torch.zeros(2, 29), "centre must be int32, got Float"),
        ("shepard_interpolate", "power", torch.ones(2), r"power must be one number, got \[2\]"),
        ("deformable_points", "table", torch.zeros(2, 3, 0, 9, 4).int(), "table must cover a canv"),
    ],
)
def test_values(name, key, value, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        _run(name, {**_arguments(name), key: value})


@pytest.mark.parametrize("suffix", ["", "_backward"])
@pytest.mark.parametrize(
    ("name", "key", "low", "high"),
    [
        ("cluster_attention", "clusters", 0, 6),
        ("point_conv", "centre", 0, 60),
        ("point_conv", "clusters", 0, 7),
        ("shepard_interpolate", "index", 0, 44),
        ("deformable_points", "table", -1, 56),
    ],
)
def test_indices(name, key, low, high, suffix):
    values = _arguments(name + suffix)
    for bad in (low - 1, high + 1, -(2**31), 2**31 - 1):
        wrong = values[key].clone()
        wrong.view(-1)[-1] = bad
        first, last = wrong.min(), wrong.max()
        message = f"^{key} must lie in {low} to {high}, got {first} to {last}$"
        with pytest.raises(IndexError, match=message):
            _run(name + suffix, {**values, key: wrong})


def test_long_indices_do_not_wrap_around():
    leaves, given = shepard_inputs(F32)
    given["index"] = given["index"].long() + 2**32
    with pytest.raises(IndexError, match="index must lie in 0 to 44, got 2147483647 to"):
        ops.shepard_interpolate(**leaves, **given)


def _expanded(sizes: dict, inputs: dict) -> dict:
    """Tensors of the given sizes that take up no memory."""
    return inputs | {key: inputs[key].flatten()[:1].expand(size) for key, size in sizes.items()}


def _joined(inputs) -> dict:
    leaves, given = inputs
    return {**leaves, **given}


HALF = 2**16
ONE = {"batch": 1, "count": 1, "m": 1, "nearest": 1}
ATTENTION = _joined(attention_inputs(F32, heads=1, dim=1, **ONE))


@pytest.mark.parametrize(
    ("name", "values", "what"),
    [
        ("knn", _expanded({"database": (2, 2**31, 2)}, _joined(knn_inputs())), "points of datab"),
        (
            "cluster_attention",
            _expanded(
                {key: (HALF, HALF, 1, 1) for key in "qkv"}
                | {"pos": (HALF, HALF, 2), "clusters": (HALF, HALF, 0)},
                ATTENTION,
            ),
            "tokens of a batch",
        ),
        (
            "cluster_attention",
            _expanded(
                {key: (1, HALF, 1, 1) for key in "qkv"}
                | {"pos": (1, HALF, 2), "clusters": (1, HALF, HALF)},
                ATTENTION,
            ),
            "clusters of an image",
        ),
        (
            "point_conv",
            _expanded(
                {"centre": (1, HALF), "clusters": (1, HALF, HALF)},
                _joined(conv_inputs(F32, **ONE)),
            ),
            "clusters of an image",
        ),
        (
            "shepard_interpolate",
            _expanded(
                {"query": (1, HALF, 2), "index": (1, HALF, HALF)},
                _joined(shepard_inputs(F32, batch=1)),
            ),
            "indices of an image",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_counts(name, values, what):
    with pytest.raises(ValueError, match=f"{what}.* must be fewer than 2\\^31, got (2147|4294)"):
        _run(name, values)


@pytest.mark.parametrize("name", FORWARD)
def test_meta_tensors_tell_shapes(name):
    values = _arguments(name)
    meta = {key: x.to("meta") if torch.is_tensor(x) else x for key, x in values.items()}
    for got, want in zip(_as_tuple(_run(name, meta)), _as_tuple(_run(name, values)), strict=True):
        assert got.is_meta and got.shape == want.shape and got.dtype == want.dtype


def _as_tuple(x) -> tuple:
    return x if isinstance(x, tuple) else (x,)
