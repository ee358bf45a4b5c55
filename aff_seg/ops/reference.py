"""The five operators in plain PyTorch: what they compute, readable, differentiable.

Shape legend
    B images, N tokens, Q queries (tokens or pixels), C channels, heads, D = C / heads,
    R clusters in a neighbourhood, m tokens in a cluster, L levels, P sampling points,
    K neighbours.

A neighbourhood is ``(clusters, m)``: member t of cluster c is token ``c * m + t``, absent
when that is N or more. Positions are (x, y) in stride-4 pixels.

Work is cut into chunks of queries so that no intermediate exceeds ``_CHUNK_ELEMENTS``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK_ELEMENTS = 1 << 24
_SHEPARD_EPS = 1e-11


def _chunks(num_queries: int, elements_per_query: int) -> list[slice]:
    step = max(1, _CHUNK_ELEMENTS // max(1, elements_per_query))
    return [slice(i, min(i + step, num_queries)) for i in range(0, max(num_queries, 1), step)]


def knn(query: Tensor, database: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Exact nearest neighbours; see :func:`aff_seg.ops.knn`."""
    batch, num_queries, _ = query.shape
    # Positions shared by the whole batch are searched once.
    if batch > 1 and query.stride(0) == 0 and database.stride(0) == 0:
        index, dist = knn(query[:1], database[:1], k)
        return index.expand(batch, -1, -1), dist.expand(batch, -1, -1)
    index, dist = [], []
    for part in _chunks(num_queries, batch * database.shape[1]):
        delta = query[:, part, None, :] - database[:, None, :, :]
        d2 = delta.square().sum(-1)
        part_index = _smallest(d2, k)
        part_dist = d2.gather(-1, part_index)
        # Indices ascend, so a stable sort leaves ties at the lower index.
        part_dist, order = part_dist.sort(dim=-1, stable=True)
        index.append(part_index.gather(-1, order).int())
        dist.append(part_dist)
    return torch.cat(index, 1), torch.cat(dist, 1)


def _smallest(values: Tensor, k: int) -> Tensor:
    """Indices (..., k), ascending, of the k smallest along the last axis; ties to the lower."""
    kth = values.topk(k, dim=-1, largest=False, sorted=False).values.amax(-1, keepdim=True)
    less = values < kth
    tied = values == kth
    wanted = k - less.sum(-1, keepdim=True, dtype=torch.int32)
    keep = less | (tied & (tied.cumsum(-1, dtype=torch.int32) <= wanted))
    return keep.nonzero()[:, -1].view(*values.shape[:-1], k)


def relative_features(delta: Tensor) -> Tensor:
    """(..., 2) offsets (dx, dy) to (..., 5) features (dx, dy, r, dy / r, dx / r), 0 where r = 0."""
    dx, dy = delta.unbind(-1)
    r = (dx.square() + dy.square()).sqrt()
    inverse = torch.where(r > 0, 1 / r.clamp_min(1e-12), torch.zeros_like(r))
    return torch.stack((dx, dy, r, dy * inverse, dx * inverse), dim=-1)


def _blocks(x: Tensor, m: int) -> Tensor:
    """(B, N, C) to (B * clusters, m * C): one row per cluster, the last one zero-padded."""
    batch, num_tokens, channels = x.shape
    num_clusters = -(-num_tokens // m)
    x = F.pad(x, (0, 0, 0, num_clusters * m - num_tokens))
    return x.reshape(batch * num_clusters, m * channels)


class _Neighbourhood:
    """Reads values of the members of ``(clusters, m)`` for one chunk of queries."""

    def __init__(self, clusters: Tensor, m: int, num_tokens: int):
        batch, self.num_queries, _ = clusters.shape
        num_clusters = -(-num_tokens // m)
        self.m = m
        self.batch = batch
        first = num_clusters * torch.arange(batch, device=clusters.device)
        self.rows = (clusters.long() + first[:, None, None]).flatten()
        member = clusters.long()[..., None] * m + torch.arange(m, device=clusters.device)
        #: (B, Q, R * m), False at the absent members of a short last cluster.
        self.present = member.flatten(2) < num_tokens

    def read(self, blocks: Tensor) -> Tensor:
        """Rows of :func:`_blocks` to (B, Q, R * m, C)."""
        channels = blocks.shape[1] // self.m
        return F.embedding(self.rows, blocks).view(self.batch, self.num_queries, -1, channels)


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
) -> Tensor:
    """Local attention over the nearest clusters; see :func:`aff_seg.ops.cluster_attention`."""
    batch, num_tokens, heads, dim = q.shape
    channels = heads * dim
    q = q * dim**-0.5
    blank_logit = torch.einsum("bnhd,hd->bnh", q, blank_k.view(heads, dim))
    kv_blocks = _blocks(torch.cat((k.flatten(2), v.flatten(2)), -1), m)
    pos_blocks = _blocks(pos, m)
    out = []
    for part in _chunks(num_tokens, 2 * batch * clusters.shape[2] * m * channels):
        near = _Neighbourhood(clusters[:, part], m, num_tokens)
        near_kv = near.read(kv_blocks).unflatten(-1, (2, heads, dim))
        near_k, near_v = near_kv.unbind(-3)
        relative = relative_features(near.read(pos_blocks) - pos[:, part, None])
        logit = (q[:, part, None] * near_k).sum(-1) + F.linear(relative, pos_weight, pos_bias)
        logit = logit.masked_fill(~near.present[..., None], -torch.inf)
        logit = torch.cat((logit, blank_logit[:, part, None]), dim=2)
        weight = logit.softmax(dim=2)
        attended = (weight[:, :, :-1, :, None] * near_v).sum(2)
        out.append(attended + weight[:, :, -1, :, None] * blank_v.view(heads, dim))
    return torch.cat(out, 1)


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
    norm_eps: float,
    sign: int,
) -> Tensor:
    """Position-weighted sums of neighbours; see :func:`aff_seg.ops.point_conv`."""
    batch, num_tokens, channels = feat.shape
    num_queries = centre.shape[1]
    values = feat if score is None else torch.cat((feat, score[..., None]), -1)
    value_blocks = _blocks(values, m)
    pos_blocks = _blocks(pos, m)
    centre_pos = pos.gather(1, centre.long()[..., None].expand(-1, -1, 2))
    out = []
    for part in _chunks(num_queries, batch * clusters.shape[2] * m * channels):
        near = _Neighbourhood(clusters[:, part], m, num_tokens)
        near_values = near.read(value_blocks)
        relative = relative_features(sign * (near.read(pos_blocks) - centre_pos[:, part, None]))
        w = F.linear(relative, weight, bias)
        w = F.gelu(F.layer_norm(w, (w.shape[-1],), norm_weight, norm_bias, norm_eps))
        if score is not None:
            w = w * near_values[..., channels:]
        w = w * near.present[..., None]
        out.append(torch.einsum("bqki,bqkc->bqic", w, near_values[..., :channels]))
    return torch.cat(out, 1)


def _inverse_distance(d2: Tensor, power: Tensor | float) -> Tensor:
    """1 / (d2 ** power + eps), whose gradients are 0 where d2 is 0."""
    away = d2 > 0
    powered = torch.where(away, torch.where(away, d2, 1.0) ** power, 0.0)
    return 1 / (powered + _SHEPARD_EPS)


def shepard_interpolate(
    feat: Tensor, pos: Tensor, query: Tensor, index: Tensor, power: Tensor | float
) -> Tensor:
    """Inverse-distance mean of listed tokens; see :func:`aff_seg.ops.shepard_interpolate`."""
    batch, num_queries, num_near = index.shape
    channels = feat.shape[2]
    feat_blocks, pos_blocks = _blocks(feat, 1), _blocks(pos, 1)
    out = []
    for part in _chunks(num_queries, batch * num_near * channels):
        near = _Neighbourhood(index[:, part], 1, feat.shape[1])
        d2 = (near.read(pos_blocks) - query[:, part, None]).square().sum(-1)
        weight = _inverse_distance(d2, power)
        weight = weight / weight.sum(-1, keepdim=True)
        out.append(torch.einsum("bqk,bqkc->bqc", weight.to(feat), near.read(feat_blocks)))
    return torch.cat(out, 1)


def deformable_points(
    value: Tensor,
    pos: Tensor,
    table: Tensor,
    location: Tensor,
    weight: Tensor,
    power: Tensor | float,
) -> Tensor:
    """Deformable attention over points; see :func:`aff_seg.ops.deformable_points`."""
    batch, num_tokens, heads, dim = value.shape
    _, levels, height, width, near = table.shape
    num_queries, points = location.shape[1], location.shape[4]
    pixel_limit = location.new_tensor([width - 1, height - 1])
    image = torch.arange(batch, device=value.device).view(-1, 1, 1, 1)
    head = torch.arange(heads, device=value.device).view(1, 1, -1, 1, 1)
    rows = value.reshape(batch * num_tokens * heads, dim)
    flat_pos = pos.reshape(batch * num_tokens, 2)
    out = []
    for part in _chunks(num_queries, batch * heads * points * near * dim):
        total = 0.0
        for level in range(levels):
            loc = location[:, part, :, level]
            x, y = loc.detach().round().clamp(min=0).minimum(pixel_limit).long().unbind(-1)
            token = table[:, level][image, y, x].long()
            present = token >= 0
            token = token.clamp_min(0) + image[..., None] * num_tokens
            d2 = (loc[..., None, :] - flat_pos[token]).square().sum(-1)
            nearness = _inverse_distance(d2, power) * present
            share = nearness / nearness.sum(-1, keepdim=True)
            share = share * weight[:, part, :, level, :, None]
            near_value = F.embedding(token * heads + head, rows)
            total = total + torch.einsum("bqhpk,bqhpkd->bqhd", share, near_value)
        out.append(total)
    return torch.cat(out, 1)
