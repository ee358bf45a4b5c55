"""Operations that the operators cannot do without, from the shapes of their arguments."""

from dataclasses import dataclass

# Multiply-adds of a position's term or weight, from its five features. Of a neighbour, everything
# else: its features; its share of the softmax, in a head; norm, GELU and score of a weight of the
# point convolution; an inverse distance.
_POSITION = 5
_FEATURES, _SOFTMAX, _WEIGHT, _INVERSE = 11, 3, 8 + 8 + 1, 10


@dataclass(frozen=True)
class Operations:
    """Of a call of an operator.

    Attributes:
        multiply_adds: products with features and learned weights, a multiplication with its
            addition counted once.
        others: what comes with them, such as distances and exponentials, one each.
    """

    multiply_adds: int
    others: int

    @property
    def all(self) -> int:
        """Multiplications, additions and functions, one each."""
        return 2 * self.multiply_adds + self.others


def operations(operator: str, args: tuple, *, backward: bool = False) -> Operations | None:
    """Count the operations of a call.

    Args:
        operator: name in :mod:`aff_seg.ops`.
        args: its arguments, by position.
        backward: of the call's backward, not of itself.

    Returns:
        None for a search, which may go about it in many ways.
    """
    if operator == "knn":
        return None
    return {
        "cluster_attention": _attention,
        "point_conv": _point_conv,
        "shepard_interpolate": _shepard,
        "deformable_points": _deformable,
    }[operator](args, backward)


def _attention(args: tuple, backward: bool) -> Operations:
    q, clusters, m = args[0], args[4], args[5]
    batch, num_tokens, heads, dim = q.shape
    pairs = batch * num_tokens * (clusters.shape[2] * m + 1)
    # Logit and sum; backward does the logit again and four more products.
    products = 5 if backward else 2
    return Operations(
        pairs * heads * (products * dim + _twice(_POSITION, backward)),
        pairs * (heads * _twice(_SOFTMAX, backward) + _FEATURES),
    )


def _point_conv(args: tuple, backward: bool) -> Operations:
    feat, clusters, m, weight = args[0], args[4], args[5], args[6]
    pairs = clusters.numel() * m
    return Operations(
        pairs * len(weight) * _twice(feat.shape[2] + _POSITION, backward),
        pairs * (len(weight) * _twice(_WEIGHT, backward) + _FEATURES),
    )


def _shepard(args: tuple, backward: bool) -> Operations:
    feat, index = args[0], args[3]
    return Operations(index.numel() * feat.shape[2], index.numel() * _INVERSE)


def _deformable(args: tuple, backward: bool) -> Operations:
    value, table, weight = args[0], args[2], args[4]
    reads = weight.numel() * table.shape[4]
    # Backward: the gradient of the value, and its product with the value for the weight's.
    products = 2 if backward else 1
    return Operations(reads * products * value.shape[3], reads * _INVERSE)


def _twice(count: int, backward: bool) -> int:
    """Of a product of two, backward makes two."""
    return 2 * count if backward else count
