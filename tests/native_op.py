"""What the tests of the native operators share."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from aff_seg import ops
from aff_seg.ops import reference

needs_native = pytest.mark.skipif(
    not ops.NATIVE, reason="aff_seg._C is not built, or AFF_SEG_OPS=reference is set"
)

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Largest error, relative to the largest value: rounding of the result, and of the sums behind it.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}


def accumulating(dtype: torch.dtype) -> torch.dtype:
    """The type of everything floating beside features of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def native(name: str, given: dict) -> Callable[..., Tensor]:
    """The operator as a function of what it differentiates in, by name."""
    return lambda **leaves: getattr(ops, name)(**leaves, **given)


def exact(name: str, given: dict) -> Callable[..., Tensor]:
    """Its reference, likewise, for leaves in float64."""
    given = {
        key: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
        for key, x in given.items()
    }
    return lambda **leaves: getattr(reference, name)(**leaves, **given)


def requiring_grad(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, as leaves of their own."""
    return {name: x.detach().requires_grad_() for name, x in leaves.items()}


def results(name: str, leaves: dict[str, Tensor], given: dict, grad: Tensor) -> dict[str, Tensor]:
    """Result and gradients of the native operator, by name."""
    leaves = requiring_grad(leaves)
    out = native(name, given)(**leaves)
    grads = torch.autograd.grad(out, list(leaves.values()), grad)
    return {"result": out.detach()} | dict(zip(leaves, grads, strict=True))


def scattered_memory(x: object) -> object:
    """The same values, none of them next to another; what is no tensor stays."""
    return torch.stack((x, torch.zeros_like(x)), -1)[..., 0] if isinstance(x, Tensor) else x


def assert_near(got: Tensor, want: Tensor, name: str, scale: float, tolerance: float = 0.0) -> None:
    """Errors are small beside the largest value, or beside ``scale`` if that is larger."""
    assert got.shape == want.shape, name
    if want.numel():
        error = (got.double() - want.double()).abs().max().item()
        scale = max(scale, want.double().abs().max().item())
        tolerance = tolerance or TOLERANCE[got.dtype]
        assert error <= tolerance * scale, f"{name}: {error} of {scale}"


def assert_matches(
    name: str, leaves: dict[str, Tensor], given: dict, tolerance: float = 0.0
) -> None:
    """Result and gradients are those of the reference on the same in float64."""
    wide = requiring_grad({key: x.double() for key, x in leaves.items()})
    want = exact(name, given)(**wide)
    dtype = next(iter(leaves.values())).dtype
    grad = scattered_memory(torch.randn(want.shape).to(dtype))
    got = results(name, leaves, given, grad)
    assert got["result"].dtype == dtype
    assert got["result"].is_contiguous()
    assert_near(got["result"], want, "result", 0.0, tolerance)
    want.backward(grad.double())
    for key, x in leaves.items():
        assert got[key].dtype == x.dtype
        # What many terms of about 1 add up to, if they do not cancel.
        scale = (want.numel() / x.numel()) ** 0.5 if x.numel() else 0.0
        assert_near(got[key], wide[key].grad, f"gradient of {key}", scale, tolerance)


def assert_vanishing(name: str, leaves: dict[str, Tensor], given: dict) -> None:
    """Where there is nothing to read, result and gradients are zeros of the right shape."""
    shape = native(name, given)(**leaves).shape
    got = results(name, leaves, given, torch.ones(shape))
    assert not got["result"].any()
    for key, x in leaves.items():
        assert got[key].shape == x.shape and not got[key].any(), key


def raw_arguments(name: str, values: dict) -> list:
    """Arguments of ``torch.ops.aff_seg.<name>``, in the order of its schema.

    Readers are made where they are missing.
    """
    schema = getattr(torch.ops.aff_seg, name).default._schema
    if name == "cluster_attention_backward" and "start" not in values:
        clusters, m = values["clusters"], values["m"]
        start, place = ops.cluster_readers(clusters, -(-clusters.shape[1] // m))
        values = {**values, "start": start, "place": place}
    return [values.get(argument.name) for argument in schema.arguments]


def assert_same_with_any_threads(run: Callable[[], tuple[Tensor, ...]]) -> None:
    """``run`` gives the same bits, time after time and with any number of threads."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        want = run()
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            for a, b in zip(run(), want, strict=True):
                assert torch.equal(a, b), f"{count} threads"
    finally:
        torch.set_num_threads(threads)
