"""Operations and bytes that the fused operators cannot do without.

Operations count multiplications, additions and functions alike, one each; bytes count every
argument and result once, as if all gathered rows came from the cache.
"""

from dataclasses import dataclass

from torch import Tensor

from bench.recorded import Case

# Relative features of one neighbour; a value of the point convolution's network, by its
# linear layer, norm, GELU and score; the share of softmax in a logit; an inverse distance.
_FEATURES, _NETWORK, _SOFTMAX, _INVERSE = 11, 10 + 8 + 8 + 1, 3, 10


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
    return Work(_operations(case, backward=False), _given(case) + result)


def backward_work(case: Case) -> Work:
    """Of its backward, which reads the arguments again and the result or its gradient."""
    result = _values(case) * case.args[0].element_size()
    gradients = sum(_size(case.args[i]) for i in case.learned)
    return Work(_operations(case, backward=True), _given(case) + result + gradients)


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


def _operations(case: Case, *, backward: bool) -> int:
    if case.operator == "cluster_attention":
        q, clusters, m = case.args[0], case.args[4], case.args[5]
        batch, num_tokens, heads, dim = q.shape
        pairs = batch * num_tokens * (clusters.shape[2] * m + 1)
        # Logit and sum; backward does the logit again and four more products.
        products = 5 if backward else 2
        return pairs * (heads * (products * 2 * dim + _twice(10 + _SOFTMAX, backward)) + _FEATURES)
    if case.operator == "point_conv":
        feat, clusters, m, weight = case.args[0], case.args[4], case.args[5], case.args[6]
        batch, centres, near = clusters.shape
        per_weight = _twice(2 * feat.shape[2] + _NETWORK, backward)
        return batch * centres * near * m * (weight.shape[0] * per_weight + _FEATURES)
    if case.operator == "shepard_interpolate":
        feat, index = case.args[0], case.args[3]
        return index.numel() * (2 * feat.shape[2] + _INVERSE)
    value, table, weight = case.args[0], case.args[2], case.args[4]
    # Backward: the gradient of the value, and its product with the value for the weight's.
    products = 2 if backward else 1
    return weight.numel() * table.shape[4] * (products * 2 * value.shape[3] + _INVERSE)


def _twice(count: int, backward: bool) -> int:
    """Of a product of two, backward makes two."""
    return 2 * count if backward else count
