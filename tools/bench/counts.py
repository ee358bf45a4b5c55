"""Operations and bytes that the fused operators cannot do without.

Operations, of :mod:`aff_seg.ops.counts`, are multiplications, additions and functions alike, one
each; bytes count every argument and result once, as if all gathered rows came from the cache.
"""

from dataclasses import dataclass

from torch import Tensor

from aff_seg.ops.counts import operations
from bench.recorded import Case


@dataclass(frozen=True)
class Work:
    """Operations, None where a search may go about it in many ways, and bytes."""

    operations: int | None
    bytes: int

    def __add__(self, other: "Work") -> "Work":
        return Work(self.operations + other.operations, self.bytes + other.bytes)


def forward_work(case: Case) -> Work:
    """Of a call."""
    if case.operator == "knn":
        query, _, k = case.args
        found = query.shape[0] * query.shape[1] * k
        return Work(None, _given(case) + found * (4 + query.element_size()))
    result = _values(case) * case.args[0].element_size()
    return Work(operations(case.operator, case.args).all, _given(case) + result)


def backward_work(case: Case) -> Work:
    """Of its backward, which reads the arguments again and the result or its gradient."""
    result = _values(case) * case.args[0].element_size()
    gradients = sum(_size(case.args[i]) for i in case.learned)
    count = operations(case.operator, case.args, backward=True)
    return Work(count.all, _given(case) + result + gradients)


def _given(case: Case) -> int:
    return sum(_size(x) for x in case.args if isinstance(x, Tensor))


def _size(x: Tensor) -> int:
    return x.numel() * x.element_size()


def _values(case: Case) -> int:
    """Elements of the result."""
    feat = case.args[0]
    if case.operator == "cluster_attention":
        return feat.numel()
    if case.operator == "point_conv":
        return case.args[3].numel() * case.args[6].shape[0] * feat.shape[2]
    if case.operator == "shepard_interpolate":
        return case.args[2].shape[:2].numel() * feat.shape[2]
    return case.args[3].shape[:3].numel() * feat.shape[3]
