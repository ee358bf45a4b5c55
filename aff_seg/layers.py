"""Layers on tokens that the backbone and the head share."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Tokens worked on at a time where no gradient is recorded: their hidden channels stay in cache.
_PART = 4096
# Asked here because torch.compile does not trace the question.
_ONEDNN = torch.backends.mkldnn.is_available()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``, on a CPU as a convolution of size 1.

    PyTorch gives float32 matrix products to MKL and convolutions to oneDNN. On processors not
    made by Intel the former leaves half of the vector units' width unused, and products take
    twice as long.

    Args:
        x: ``(..., C)``.
        weight: ``(C', C)``.
        bias: ``(C',)`` or None.

    Returns:
        ``(..., C')``.
    """
    by_convolution = (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and _ONEDNN
        # With one thread PyTorch does not use oneDNN for it. A graph cannot ask.
        and (torch.compiler.is_compiling() or torch.get_num_threads() > 1)
    )
    if not by_convolution or x.numel() == 0:
        return F.linear(x, weight, bias)
    # Tokens become the pixels of one image whose channels lie together.
    image = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)
    out = F.conv2d(image, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


class Linear(nn.Linear):
    """``nn.Linear`` by :func:`linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def by_parts(function: Callable[[slice], Tensor], count: int, device: torch.device) -> Tensor:
    """Join ``function(part)`` over parts of ``count`` tokens.

    On a CPU, where no gradient is recorded, what ``function`` holds between its steps then has
    the size of a part, which fits the caches. Otherwise there is one part.

    Args:
        function: from a slice of the tokens to ``(B, n, C)``, n tokens long.
        count: number of tokens.
        device: where they are.

    Returns:
        ``(B, count, C)``.
    """
    whole = torch.is_grad_enabled() or device.type != "cpu" or torch.compiler.is_compiling()
    if whole or count <= _PART:
        return function(slice(0, count))
    out = None
    for start in range(0, count, _PART):
        part = slice(start, min(start + _PART, count))
        result = function(part)
        if out is None:
            out = result.new_empty(result.shape[0], count, result.shape[2])
        out[:, part] = result
    return out
