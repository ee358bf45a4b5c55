"""The CUDA kernels, compiled for a CPU, against the references.

This shows that they index and add up what they should. It shows nothing of speed, nor that a GPU
agrees: `make gpu-check` does.
"""

import pytest
import torch
from native_op import DTYPES, assert_near, needs_native
from op_inputs import INPUTS, knn_inputs

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
    ("shepard_interpolate", {}),
    ("shepard_interpolate", {"channels": 64, "power": 3.0}),
    ("shepard_interpolate", {"near": 40, "channels": 8, "batch": 1, "queries": 9}),
    ("deformable_points", {}),
    ("deformable_points", {"counts": (2, 5), "dim": 32, "points": 2, "power": 3.0}),
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
            assert value.dtype == leaves[key].dtype
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


@pytest.mark.parametrize("name", sorted(INPUTS))
def test_nothing_to_do(emulated, name):
    leaves, given = INPUTS[name](torch.float32, batch=0)
    arguments = _arguments(getattr(emulated, name), {**leaves, **given})
    got = getattr(emulated, name)(*arguments)
    out = got[0] if isinstance(got, tuple) else got
    assert out.numel() == 0
