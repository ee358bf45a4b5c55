"""Layers on tokens."""

import pytest
import torch
import torch.nn.functional as F

from aff_seg import layers


@pytest.mark.parametrize("shape", [(2, 5, 7), (7,), (1, 1, 7), (3, 0, 7), (2, 3, 4, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_linear_is_that_of_torch(shape, dtype):
    tensors = [torch.randn(s, dtype=dtype) for s in (shape, (6, 7), (6,))]
    for count in (2, 3):  # without and with bias
        ours = [x.clone().requires_grad_() for x in tensors[:count]]
        theirs = [x.clone().requires_grad_() for x in tensors[:count]]
        got, want = layers.linear(*ours), F.linear(*theirs)
        torch.testing.assert_close(got, want)
        assert got.is_contiguous()
        grad = torch.randn_like(want)
        got.backward(grad)
        want.backward(grad)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.grad, b.grad)


def test_linear_takes_any_layout():
    x, weight = torch.randn(4, 7, 5).transpose(1, 2), torch.randn(7, 3).t()
    torch.testing.assert_close(layers.linear(x, weight), F.linear(x, weight))


def test_linear_follows_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert layers.Linear(4, 3)(torch.randn(2, 4)).dtype == torch.bfloat16


@pytest.mark.parametrize("count", [1, 8, 19])
def test_parts_make_up_the_whole(monkeypatch, count):
    monkeypatch.setattr(layers, "_PART", 8)
    x = torch.randn(2, count, 3)
    seen = []

    def double(part):
        seen.append(part)
        return 2 * x[:, part]

    with torch.no_grad():
        assert torch.equal(layers.by_parts(double, count, x.device), 2 * x)
    assert len(seen) == -(-count // 8)


def test_one_part_where_a_gradient_is_recorded(monkeypatch):
    monkeypatch.setattr(layers, "_PART", 8)
    x = torch.randn(2, 20, 3, requires_grad=True)
    parts = []
    layers.by_parts(lambda part: parts.append(part) or x[:, part], 20, x.device).sum().backward()
    assert parts == [slice(0, 20)] and torch.equal(x.grad, torch.ones_like(x))
