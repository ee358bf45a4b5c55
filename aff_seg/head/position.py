"""Sine position encoding of scattered tokens."""

import math

import torch
from torch import Tensor


def sine_encoding(pos: Tensor, dim: int, *, temperature: float = 10000.0) -> Tensor:
    """Encode positions relative to the extent of their own image.

    Each axis is divided by its largest value in the image, times 2 pi, and takes half of the
    channels: the sines of all frequencies, then their cosines; x comes before y.

    Args:
        pos: ``(B, N, 2)`` positions (x, y).
        dim: channels, a multiple of 4.

    Returns:
        ``(B, N, dim)`` float32.
    """
    extent = pos.amax(dim=1, keepdim=True) + 1e-6
    frequencies = dim // 4
    exponent = torch.arange(frequencies, device=pos.device, dtype=torch.float32) / frequencies
    angle = (pos / extent * (2 * math.pi))[..., None] / temperature**exponent
    return torch.cat((angle.sin(), angle.cos()), dim=-1).flatten(2)
