"""Random arguments for the operators, by name: what they differentiate in, and the others."""

import torch
from native_op import accumulating
from torch import Tensor

Inputs = tuple[dict[str, Tensor], dict[str, object]]


def _near_clusters(batch: int, queries: int, count: int, m: int, nearest: int) -> Tensor:
    """Distinct clusters for each query, (batch, queries, nearest); the last one may be short."""
    return torch.rand(batch, queries, -(-count // m)).argsort(-1)[..., :nearest].int()


def knn_inputs(dtype=torch.float32, *, batch=2, queries=9, count=7, k=3) -> Inputs:
    query = torch.randn(batch, queries, 2, dtype=dtype)
    return {}, {"query": query, "database": torch.randn(batch, count, 2, dtype=dtype), "k": k}


def attention_inputs(
    dtype=torch.float64, *, batch=2, count=50, heads=2, dim=16, m=8, nearest=3
) -> Inputs:
    """k and v are views of one tensor, as in the backbone."""
    exact = accumulating(dtype)
    k, v = torch.randn(batch, count, heads, 2, dim, dtype=exact).to(dtype).unbind(-2)
    clusters = _near_clusters(batch, count, count, m, nearest)
    if nearest:
        # Every other token is among its own neighbours: r = 0 occurs.
        own = torch.arange(count, dtype=torch.int32) // min(m, count)
        missing = (clusters != own[:, None]).all(-1)
        missing[:, ::2] = False
        clusters[..., 0] = torch.where(missing, own, clusters[..., 0])
    leaves = {
        "q": torch.randn(batch, count, heads, dim, dtype=exact).to(dtype),
        "k": k,
        "v": v,
        "pos_weight": torch.randn(heads, 5, dtype=exact) / 8,
        "pos_bias": torch.randn(heads, dtype=exact),
        "blank_k": torch.randn(heads * dim, dtype=exact),
        "blank_v": torch.randn(heads * dim, dtype=exact),
    }
    pos = torch.randint(0, 40, (batch, count, 2)).to(exact)
    return leaves, {"pos": pos, "clusters": clusters, "m": m}


def conv_inputs(
    dtype=torch.float64,
    *,
    batch=2,
    count=61,
    channels=37,
    queries=29,
    m=8,
    nearest=3,
    inner=4,
    scored=True,
    sign=1,
) -> Inputs:
    exact = accumulating(dtype)
    leaves = {
        "feat": torch.randn(batch, count, channels, dtype=exact).to(dtype),
        "weight": torch.randn(inner, 5, dtype=exact),
        "bias": torch.randn(inner, dtype=exact),
        "norm_weight": torch.randn(inner, dtype=exact),
        "norm_bias": torch.randn(inner, dtype=exact),
    }
    given = {
        "pos": torch.randint(0, 9, (batch, count, 2)).to(exact),
        "centre": torch.randint(0, max(count, 1), (batch, queries)).int(),
        "clusters": _near_clusters(batch, queries, count, m, nearest),
        "m": m,
        "norm_eps": 1e-5,
        "sign": sign,
    }
    score = torch.rand(batch, count, dtype=exact)
    (leaves if scored else given)["score"] = score if scored else None
    return leaves, given


def shepard_inputs(
    dtype=torch.float64, *, batch=2, count=45, channels=37, queries=70, near=4, power=2.7
) -> Inputs:
    exact = accumulating(dtype)
    leaves = {
        "feat": torch.randn(batch, count, channels, dtype=exact).to(dtype),
        "power": torch.tensor([power], dtype=exact),
    }
    pos = torch.randint(0, 12, (batch, count, 2)).to(exact)
    query = torch.rand(batch, queries, 2, dtype=exact) * 12
    # Some queries on tokens, and some far outside.
    query[:, : queries // 4] = pos[:, :1] if count else 0
    query[:, -(queries // 8) :] += 300
    index = torch.randint(0, max(count, 1), (batch, queries, near)).int()
    index[:, ::3, :1] = 0
    return leaves, {"pos": pos, "query": query, "index": index}


def deformable_inputs(
    dtype=torch.float64,
    *,
    batch=2,
    counts=(3, 14, 40),
    heads=2,
    dim=24,
    queries=21,
    points=4,
    near=4,
    size=(7, 9),
    power=2.7,
) -> Inputs:
    """Levels with fewer tokens than ``near`` list absent ones."""
    exact = accumulating(dtype)
    height, width = size
    total, levels = sum(counts), len(counts)
    table = torch.empty(batch, levels, height, width, near, dtype=torch.int32)
    start = 0
    for level, count in enumerate(counts):
        near_pixel = torch.randint(start, start + count, (batch, height, width, near))
        table[:, level] = near_pixel.masked_fill(torch.arange(near) >= count, -1)
        start += count
    location = torch.rand(batch, queries, heads, levels, points, 2, dtype=exact)
    leaves = {
        "value": torch.randn(batch, total, heads, dim, dtype=exact).to(dtype),
        # Inside the canvas and around it.
        "location": location * (max(size) + 4) - 2,
        "weight": torch.rand(batch, queries, heads, levels, points, dtype=exact),
        "power": torch.tensor([power], dtype=exact),
    }
    pos = torch.randint(0, min(size), (batch, total, 2)).to(exact)
    return leaves, {"pos": pos, "table": table}


#: The differentiable operators.
INPUTS = {
    "cluster_attention": attention_inputs,
    "point_conv": conv_inputs,
    "shepard_interpolate": shepard_inputs,
    "deformable_points": deformable_inputs,
}
#: Sizes with several blocks of work for each of some threads.
LARGE = {
    "cluster_attention": {"count": 620, "heads": 8, "nearest": 12},
    "point_conv": {"count": 2000, "queries": 900, "nearest": 6, "channels": 48},
    "shepard_interpolate": {"count": 700, "queries": 3000, "channels": 48},
    "deformable_points": {"counts": (60, 200), "queries": 300, "heads": 3, "size": (20, 30)},
}
