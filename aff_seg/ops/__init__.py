"""The operators of AFF. Modules call these and nothing below them.

A neighbourhood is ``(clusters, m)``: member t of cluster c is token ``c * m + t``, absent when
that is N or more, N being the number of tokens. Explicit neighbour lists are the case m = 1.
Positions are (x, y) in stride-4 pixels of the canvas; squared distances are in the square of
that unit. Integer arguments may be int32 or int64; returned indices are int32.
On a GPU no value is read back: an index out of range or a position that is not finite fails an
assertion on the device, where a CPU raises an exception.

Source: AutoFocusFormer, arXiv 2304.12406.
"""

import os
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from . import reference
from .reference import relative_features

_CHOICE = os.environ.get("AFF_SEG_OPS", "")
if _CHOICE not in ("", "reference"):
    raise ImportError(f"AFF_SEG_OPS must be reference or unset, got {_CHOICE}.")
#: Whether the native operators are built; AFF_SEG_OPS=reference leaves them out.
NATIVE = not _CHOICE and bool(PathFinder.find_spec("_C", [str(Path(__file__).parents[1])]))
#: Types of devices on which they run.
NATIVE_DEVICES: tuple[str, ...] = ()
if NATIVE:
    from . import _native  # completes the registrations of aff_seg._C

    NATIVE_DEVICES = ("cpu", "cuda") if _native.CUDA else ("cpu",)

__all__ = [
    "Readers",
    "active_paths",
    "cluster_attention",
    "cluster_readers",
    "deformable_points",
    "knn",
    "point_conv",
    "relative_features",
    "shepard_interpolate",
]


def active_paths() -> dict[str, str]:
    """Which implementation each operator runs on, for reports."""
    names = ("knn", "cluster_attention", "point_conv", "shepard_interpolate", "deformable_points")
    reference = "reference (PyTorch)"
    cpu = "native (C++)" if "cpu" in NATIVE_DEVICES else reference
    gpu = "native (CUDA)" if "cuda" in NATIVE_DEVICES else reference
    return {name: f"CPU {cpu}, GPU {gpu}" for name in names}


def _runs_native(tensor: Tensor) -> bool:
    return tensor.device.type in NATIVE_DEVICES


def _accumulating(dtype: torch.dtype) -> torch.dtype:
    """The type in which features of ``dtype`` are summed up: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _exponent(power: Tensor | float, like: Tensor) -> Tensor:
    """``power`` as a tensor of one element."""
    if isinstance(power, Tensor):
        power = power.to(like)
    else:  # made where it is used: copying it there would wait for the device
        power = like.new_full((1,), power)
    _check(power.numel() == 1, f"power must be one number, got shape {tuple(power.shape)}")
    return power.reshape(1)


def _int32(index: Tensor) -> Tensor:
    """``index`` as int32; what that cannot hold stays out of any range."""
    if index.dtype == torch.int64:
        limits = torch.iinfo(torch.int32)
        index = index.clamp(limits.min, limits.max)
    return index.int()


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _check_tensor(
    name: str,
    tensor: Tensor,
    shape: tuple[int | None, ...],
    legend: str,
    *,
    beside: Tensor | None = None,
) -> None:
    """Shape, and the device if the tensor comes ``beside`` another."""
    fits = tensor.dim() == len(shape) and all(
        want is None or got == want for got, want in zip(tensor.shape, shape, strict=True)
    )
    _check(fits, f"{name} must have shape {legend}, got {tuple(tensor.shape)}")
    if beside is not None:
        fits = tensor.device == beside.device
        _check(fits, f"{name} must be on {beside.device}, got {tensor.device}")


def _check_index(name: str, tensor: Tensor, low: int, high: int) -> None:
    """Dtype; for the references on a CPU the range, which native operators check themselves."""
    fits = tensor.dtype in (torch.int32, torch.int64)
    _check(fits, f"{name} must be int32 or int64, got {tensor.dtype}")
    if NATIVE or tensor.device.type != "cpu" or tensor.numel() == 0:
        return
    first, last = (int(x) for x in tensor.aminmax())
    if first < low or last > high:
        raise IndexError(f"{name} must lie in {low} to {high}, got {first} to {last}")


def _check_size(name: str, value: int) -> None:
    _check(not isinstance(value, float) and value >= 1, f"{name} must be at least 1, got {value}")


def knn(query: Tensor, database: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest points of each query, exactly.

    Args:
        query: ``(B, Q, 2)`` positions.
        database: ``(B, N, 2)`` positions, of the same dtype.
        k: number of neighbours, from 1 to N.

    Returns:
        index ``(B, Q, k)`` int32 into the database, nearest first, ties to the lower index;
        squared distance ``(B, Q, k)``. Neither is differentiable.

    Raises:
        ValueError: for a wrong shape, dtype, device or k, or a position that is not finite.
    """
    _check_tensor("query", query, (None, None, 2), "(B, Q, 2)")
    _check_tensor("database", database, (query.shape[0], None, 2), "(B, N, 2)", beside=query)
    for name, tensor in (("query", query), ("database", database)):
        fits = tensor.dtype == query.dtype and tensor.dtype in (torch.float32, torch.float64)
        _check(fits, f"{name} must be float32 or float64 like the other, got {tensor.dtype}")
    fits = not isinstance(k, float) and 1 <= k <= database.shape[1]
    _check(fits, f"k must be 1 to {database.shape[1]}, got {k}")
    query, database = query.detach(), database.detach()
    if _runs_native(query):
        return torch.ops.aff_seg.knn(query, database, k)
    if query.device.type == "cpu":
        for name, tensor in (("query", query), ("database", database)):
            _check(bool(tensor.isfinite().all()), f"{name} must be finite")
    return reference.knn(query, database, k)


class Readers(NamedTuple):
    """Who reads each cluster of ``(B, N, R)`` lists.

    Place p of an image is entry ``p % R`` of the list of token ``p // R``. For cluster c of
    image b, ``place[start[b * count + c] : start[b * count + c + 1]]`` are those where c is
    listed, ascending. ``start`` is ``(B * count + 1,)`` int64, ``place`` ``(B * N * R,)`` int32.
    """

    start: Tensor
    place: Tensor


def cluster_readers(clusters: Tensor, count: int) -> Readers:
    """Who reads each cluster, for backward passes of :func:`cluster_attention`.

    Args:
        clusters: ``(B, N, R)`` clusters of each token's neighbourhood.
        count: number of clusters, ``ceil(N / m)``.

    Raises:
        ValueError: for a wrong shape, dtype or count.
        IndexError: for a cluster out of range.
    """
    _check_tensor("clusters", clusters, (None, None, None), "(B, N, R)")
    _check_index("clusters", clusters, 0, count - 1)
    if _runs_native(clusters):
        return Readers(*torch.ops.aff_seg.cluster_readers(_int32(clusters), count))
    return Readers(*reference.cluster_readers(clusters, count))


def cluster_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos: Tensor,
    clusters: Tensor,
    m: int,
    pos_weight: Tensor,
    pos_bias: Tensor,
    blank_k: Tensor,
    blank_v: Tensor,
    *,
    readers: Readers | None = None,
) -> Tensor:
    """Multi-head attention of every token over its nearest clusters and one blank token.

    The logit of token i for neighbour j is ``q_i . k_j / sqrt(D)`` plus the position term
    ``pos_weight @ relative_features(p_j - p_i) + pos_bias``; for the blank token it is
    ``q_i . blank_k / sqrt(D)``.

    Args:
        q, k, v: ``(B, N, heads, D)``.
        pos: ``(B, N, 2)`` positions.
        clusters: ``(B, N, R)`` clusters of each token's neighbourhood.
        m: tokens per cluster.
        pos_weight, pos_bias: ``(heads, 5)`` and ``(heads,)``.
        blank_k, blank_v: ``(heads * D,)``.
        readers: :func:`cluster_readers` of these clusters, where several calls share them;
            otherwise backward makes them.

    Returns:
        ``(B, N, heads, D)``, differentiable in everything but ``pos``.

    Raises:
        ValueError: for a wrong shape, dtype, device or m.
        IndexError: for a cluster out of range.
    """
    _check_tensor("q", q, (None, None, None, None), "(B, N, heads, D)")
    batch, num_tokens, heads, dim = q.shape
    _check_tensor("k", k, q.shape, "of q", beside=q)
    _check_tensor("v", v, q.shape, "of q", beside=q)
    _check_tensor("pos", pos, (batch, num_tokens, 2), "(B, N, 2)", beside=q)
    _check_tensor("clusters", clusters, (batch, num_tokens, None), "(B, N, R)", beside=q)
    _check_tensor("pos_weight", pos_weight, (heads, 5), "(heads, 5)", beside=q)
    _check_tensor("pos_bias", pos_bias, (heads,), "(heads,)", beside=q)
    _check_tensor("blank_k", blank_k, (heads * dim,), "(heads * D,)", beside=q)
    _check_tensor("blank_v", blank_v, (heads * dim,), "(heads * D,)", beside=q)
    _check_size("m", m)
    _check_index("clusters", clusters, 0, (num_tokens - 1) // m)
    if _runs_native(q):
        exact = _accumulating(q.dtype)
        learned = (x.to(exact) for x in (pos_weight, pos_bias, blank_k, blank_v))
        return torch.ops.aff_seg.cluster_attention(
            q, k, v, pos.to(exact), _int32(clusters), m, *learned, *(readers or (None, None))
        )[0]
    return reference.cluster_attention(
        q, k, v, pos, clusters, m, pos_weight, pos_bias, blank_k, blank_v
    )


def point_conv(
    feat: Tensor,
    score: Tensor | None,
    pos: Tensor,
    centre: Tensor,
    clusters: Tensor,
    m: int,
    weight: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    norm_eps: float = 1e-5,
    sign: int = 1,
) -> Tensor:
    """Sums of neighbours' features, weighted by a small network on their relative position.

    With ``w_j = GELU(LayerNorm(weight @ relative_features(sign * (p_j - p_c)) + bias)) * s_j``,
    the result at centre c is the outer product ``sum_j w_j x_j``.

    Args:
        feat: ``(B, N, C)`` features x.
        score: ``(B, N)`` factors s, or None for 1.
        pos: ``(B, N, 2)`` positions.
        centre: ``(B, Q)`` token index of each centre.
        clusters: ``(B, Q, R)`` clusters of each centre's neighbourhood.
        m: tokens per cluster.
        weight, bias: ``(I, 5)`` and ``(I,)``; I is 4 in AFF.
        norm_weight, norm_bias, norm_eps: the LayerNorm over I.
        sign: 1 for neighbour minus centre, -1 for centre minus neighbour.

    Returns:
        ``(B, Q, I, C)``, differentiable in feat, score and the four parameters.

    Raises:
        ValueError: for a wrong shape, dtype, device, m or sign.
        IndexError: for a centre or cluster out of range.
    """
    _check_tensor("feat", feat, (None, None, None), "(B, N, C)")
    batch, num_tokens, _ = feat.shape
    if score is not None:
        _check_tensor("score", score, (batch, num_tokens), "(B, N)", beside=feat)
    _check_tensor("pos", pos, (batch, num_tokens, 2), "(B, N, 2)", beside=feat)
    _check_tensor("centre", centre, (batch, None), "(B, Q)", beside=feat)
    _check_tensor("clusters", clusters, (batch, centre.shape[1], None), "(B, Q, R)", beside=feat)
    _check_tensor("weight", weight, (None, 5), "(I, 5)", beside=feat)
    for name, tensor in (("bias", bias), ("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        _check_tensor(name, tensor, (weight.shape[0],), "(I,)", beside=feat)
    _check_size("m", m)
    _check_index("centre", centre, 0, num_tokens - 1)
    _check_index("clusters", clusters, 0, (num_tokens - 1) // m)
    _check(sign in (1, -1), f"sign must be 1 or -1, got {sign}")
    if _runs_native(feat):
        exact = _accumulating(feat.dtype)
        score = score if score is None else score.to(exact)
        learned = (x.to(exact) for x in (weight, bias, norm_weight, norm_bias))
        centre, clusters = _int32(centre), _int32(clusters)
        return torch.ops.aff_seg.point_conv(
            feat, score, pos.to(exact), centre, clusters, m, *learned, norm_eps, sign
        )
    return reference.point_conv(
        feat, score, pos, centre, clusters, m, weight, bias, norm_weight, norm_bias, norm_eps, sign
    )


def shepard_interpolate(
    feat: Tensor, pos: Tensor, query: Tensor, index: Tensor, power: Tensor | float
) -> Tensor:
    """Inverse-distance interpolation of tokens at query positions.

    Weights are ``1 / (d2 ** power + 1e-11)``, normalised, d2 being the squared distance.

    Args:
        feat: ``(B, N, C)`` features.
        pos: ``(B, N, 2)`` positions.
        query: ``(B, Q, 2)`` positions.
        index: ``(B, Q, K)`` tokens to read for each query.
        power: exponent on the squared distance.

    Returns:
        ``(B, Q, C)``.

    Raises:
        ValueError: for a wrong shape, dtype, device or power.
        IndexError: for a token out of range.
    """
    _check_tensor("feat", feat, (None, None, None), "(B, N, C)")
    batch, num_tokens, _ = feat.shape
    _check_tensor("pos", pos, (batch, num_tokens, 2), "(B, N, 2)", beside=feat)
    _check_tensor("query", query, (batch, None, 2), "(B, Q, 2)", beside=feat)
    _check_tensor("index", index, (batch, query.shape[1], None), "(B, Q, K)", beside=feat)
    _check_index("index", index, 0, num_tokens - 1)
    if _runs_native(feat):
        pos, query = (x.to(_accumulating(feat.dtype)) for x in (pos, query))
        return torch.ops.aff_seg.shepard_interpolate(
            feat, pos, query, _int32(index), _exponent(power, pos)
        )
    return reference.shepard_interpolate(feat, pos, query, index, _exponent(power, pos))


def deformable_points(
    value: Tensor,
    pos: Tensor,
    table: Tensor,
    location: Tensor,
    weight: Tensor,
    power: Tensor | float,
) -> Tensor:
    """Multi-scale deformable attention whose values lie on scattered tokens.

    A sampling location reads, at its level, the tokens that ``table`` lists for the canvas
    pixel nearest to it (rounding half to even, clamped to the canvas), and takes their
    inverse-distance mean as :func:`shepard_interpolate` does, from the unclamped location.

    Args:
        value: ``(B, N, heads, D)`` values, all levels one after the other.
        pos: ``(B, N, 2)`` positions, in the same order.
        table: ``(B, L, H, W, K)`` nearest tokens of each level at each canvas pixel, as indices
            into N; -1 where the level has fewer than K.
        location: ``(B, Q, heads, L, P, 2)`` sampling locations, (x, y) in canvas pixels.
        weight: ``(B, Q, heads, L, P)`` attention weights.
        power: exponent on the squared distance, a number or a tensor of one element.

    Returns:
        ``(B, Q, heads, D)``, differentiable in value, location, weight and power. At distance 0
        the gradients through the inverse distance are 0.

    Raises:
        ValueError: for a wrong shape, dtype, device or power.
        IndexError: for a token out of range.
    """
    _check_tensor("value", value, (None, None, None, None), "(B, N, heads, D)")
    batch, num_tokens, heads, _ = value.shape
    _check_tensor("pos", pos, (batch, num_tokens, 2), "(B, N, 2)", beside=value)
    _check_tensor("table", table, (batch, None, None, None, None), "(B, L, H, W, K)", beside=value)
    _check_tensor(
        "location",
        location,
        (batch, None, heads, table.shape[1], None, 2),
        "(B, Q, heads, L, P, 2)",
        beside=value,
    )
    _check_tensor("weight", weight, location.shape[:-1], "(B, Q, heads, L, P)", beside=value)
    _check_index("table", table, -1, num_tokens - 1)
    if _runs_native(value):
        pos, location, weight = (x.to(_accumulating(value.dtype)) for x in (pos, location, weight))
        return torch.ops.aff_seg.deformable_points(
            value, pos, _int32(table), location, weight, _exponent(power, pos)
        )
    power = _exponent(power, pos)
    return reference.deformable_points(value, pos, table, location, weight, power)
