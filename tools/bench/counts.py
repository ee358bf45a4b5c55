"""Operations and bytes that the fused operators cannot do without.

Operations count multiplications, additions and functions alike, one each; bytes count every
argument and result once, as if all gathered rows came from the cache.
"""

from torch import Tensor

from bench.recorded import Case

# Relative features of one neighbour; a value of the point convolution's network, by its
# linear layer, norm, GELU and score; the share of softmax in a logit.
_FEATURES, _NETWORK, _SOFTMAX = 11, 10 + 8 + 8 + 1, 3


def operations(case: Case, backward: bool) -> int:
    """Of a call of cluster_attention or point_conv, with its backward or without."""
    if case.operator == "cluster_attention":
        q, clusters, m = case.args[0], case.args[4], case.args[5]
        batch, num_tokens, heads, dim = q.shape
        pairs = batch * num_tokens * (clusters.shape[2] * m + 1)
        # Logit and sum; backward does the logit again and four more products.
        products = 2 + 5 * backward
        per_head = products * 2 * dim + (1 + 2 * backward) * (10 + _SOFTMAX)
        return pairs * (heads * per_head + (1 + backward) * _FEATURES)
    feat, clusters, m, weight = case.args[0], case.args[4], case.args[5], case.args[6]
    batch, centres, near = clusters.shape
    inner, channels = weight.shape[0], feat.shape[2]
    per_weight = (1 + 2 * backward) * (2 * channels + _NETWORK)
    return batch * centres * near * m * (inner * per_weight + (1 + backward) * _FEATURES)


def bytes_moved(case: Case, backward: bool) -> int:
    """Of a call of cluster_attention or point_conv, with its backward or without."""
    given = sum(x.numel() * x.element_size() for x in case.args if isinstance(x, Tensor))
    feat = case.args[0]
    if case.operator == "cluster_attention":
        result, gradients = feat.numel(), 3 * feat.numel()
    else:
        result = case.args[3].numel() * case.args[6].shape[0] * feat.shape[2]
        gradients = feat.numel()
    # Backward reads the arguments again, the result or its gradient, and writes the gradients.
    moved = result + backward * (result + gradients)
    return (1 + backward) * given + moved * feat.element_size()
