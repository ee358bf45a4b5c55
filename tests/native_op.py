"""What the tests of the native operators share."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from aff_seg import ops

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


def scattered_memory(x: Tensor) -> Tensor:
    """The same values, none of them next to another."""
    return torch.stack((x, torch.zeros_like(x)), -1)[..., 0]


def assert_near(got: Tensor, want: Tensor, name: str, scale: float = 0.0) -> None:
    """Errors are small beside the largest value, or beside ``scale`` if that is larger."""
    assert got.shape == want.shape, name
    if want.numel():
        error = (got.double() - want.double()).abs().max().item()
        scale = max(scale, want.double().abs().max().item())
        assert error <= TOLERANCE[got.dtype] * scale, f"{name}: {error} of {scale}"


def assert_matches(
    native: Callable[..., Tensor], reference: Callable[..., Tensor], leaves: dict[str, Tensor]
) -> None:
    """Results and gradients of ``native`` are those of ``reference`` on the same in float64."""
    given = {name: x.detach().requires_grad_() for name, x in leaves.items()}
    exact = {name: x.detach().double().requires_grad_() for name, x in leaves.items()}
    got, want = native(**given), reference(**exact)
    assert got.dtype == next(iter(leaves.values())).dtype
    assert got.is_contiguous()
    assert_near(got, want, "result")
    grad = scattered_memory(torch.randn(got.shape, dtype=got.dtype))
    got.backward(grad)
    want.backward(grad.double())
    for name, x in given.items():
        assert x.grad.dtype == x.dtype
        # What many terms of about 1 add up to, if they do not cancel.
        scale = (got.numel() / x.numel()) ** 0.5
        assert_near(x.grad, exact[name].grad, f"gradient of {name}", scale)


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
