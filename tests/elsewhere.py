"""Runs the operators of CPU tensors elsewhere, so that one set of tests proves all kernels.

``pytest tests/ops --device cuda`` sends them to a GPU and back; ``--device emulated`` to the CUDA
kernels compiled for a CPU (tests/emulation).
"""

import torch
from emulation.build import build
from torch import Tensor
from torch.utils._pytree import tree_map_only

# As registered by csrc.
OPERATORS = ("knn", "cluster_readers") + tuple(
    name + suffix
    for name in ("cluster_attention", "point_conv", "shepard_interpolate", "deformable_points")
    for suffix in ("", "_backward")
)


def redirect(device: str) -> torch.library.Library:
    """Let the CPU kernels' place be taken; the result holds the registrations."""
    library = torch.library.Library("aff_seg", "IMPL")
    if device == "emulated":
        torch.ops.load_library(build())
    for name in OPERATORS:
        kernel = _emulated(name) if device == "emulated" else _moved(name, device)
        library.impl(name, kernel, "CPU")
    return library


def _emulated(name: str):
    operator = getattr(torch.ops.aff_seg_emulated, name).default
    return lambda *arguments: operator(*arguments)


def _moved(name: str, device: str):
    operator = getattr(torch.ops.aff_seg, name).default

    def kernel(*arguments):
        there = tree_map_only(Tensor, lambda x: copied(x, device), arguments)
        return tree_map_only(Tensor, lambda x: x.cpu(), operator(*there))

    return kernel


def copied(x: Tensor, device: str) -> Tensor:
    """The tensor there, with the strides that it has here."""
    storage = x.untyped_storage().to(device=device)
    place = torch.empty(0, dtype=x.dtype, device=device)
    return place.set_(storage, x.storage_offset(), x.size(), x.stride())
