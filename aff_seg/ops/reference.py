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
# Pairs of query and point beyond which a search goes tile by tile; side of a tile in mean
# spacings of the points.
_BRUTE_FORCE_PAIRS = 1 << 23
_TILE_SIDE = 16
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
    if num_queries * database.shape[1] <= _BRUTE_FORCE_PAIRS:
        return _knn_brute_force(query, database, k)
    found = [_knn_in_tiles(q, d, k) for q, d in zip(query, database, strict=True)]
    index, dist = zip(*found, strict=True)
    return torch.stack(index), torch.stack(dist)


def _knn_in_tiles(query: Tensor, database: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Search tile by tile among the points near the tile only: (Q, 2), (N, 2) to (Q, k) twice.

    A tile's search is done when the k-th neighbour of each of its queries lies within the
    margin by which the points' box exceeds the tile; else the margin doubles.
    """
    extent = database.amax(0) - database.amin(0)
    # Of points in the plane, or along a line.
    spacing = max((extent.prod() / len(database)).sqrt(), extent.amax() / len(database)).item()
    spacing = max(spacing, 1e-6)
    cell = ((query - query.amin(0)) / (_TILE_SIDE * spacing)).long()
    order = (cell[:, 1] * (cell[:, 0].amax() + 1) + cell[:, 0]).argsort(stable=True)
    _, counts = torch.unique_consecutive(cell[order], dim=0, return_counts=True)
    index = torch.empty(len(query), k, dtype=torch.int32, device=query.device)
    dist = query.new_empty(len(query), k)
    for members in order.split(counts.tolist()):
        tile = query[members]
        low, high = tile.amin(0), tile.amax(0)
        margin = spacing * (k**0.5 + 1)
        while True:
            inside = ((database >= low - margin) & (database <= high + margin)).all(-1)
            near = inside.nonzero().squeeze(1)
            if len(near) >= k:
                found, d2 = _knn_brute_force(tile[None], database[near][None], k)
                # The margin is taken a little smaller than it is, for rounding.
                if len(near) == len(database) or d2.max() <= (0.999 * margin) ** 2:
                    break
            margin *= 2
        index[members] = near[found[0].long()].int()
        dist[members] = d2[0]
    return index, dist


def _knn_brute_force(query: Tensor, database: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """All pairs, some queries at a time: (B, Q, 2), (B, N, 2) to (B, Q, k) twice."""
    index, dist = [], []
    for part in _chunks(query.shape[1], query.shape[0] * database.shape[1]):
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


def _members(clusters: Tensor, m: int, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Tokens of neighbourhoods, (B, Q, R) to (B, Q, R * m) int64, and which of them exist.

    Those absent from a short last cluster are clamped to a token that does.
    """
    m = min(m, num_tokens)  # of a longer cluster, no more exist
    member = clusters.long()[..., None] * m + torch.arange(m, device=clusters.device)
    member = member.flatten(2)
    return member.clamp_max(num_tokens - 1), member < num_tokens


def _weighted_sum(rows: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """``out[i] = sum_k weight[i, k] * rows[index[i, k]]`` without storing the gathered rows.

    ``rows`` is (M, C), ``index`` and ``weight`` are (..., K); the result is (..., C).
    """
    out = F.embedding_bag(
        index.reshape(-1, index.shape[-1]).long(),
        rows,
        mode="sum",
        per_sample_weights=weight.to(rows).reshape(-1, index.shape[-1]),
    )
    return out.view(*index.shape[:-1], rows.shape[1])


def cluster_readers(clusters: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Which places read each cluster; see :func:`aff_seg.ops.cluster_readers`."""
    batch = clusters.shape[0]
    first = count * torch.arange(batch, device=clusters.device)[:, None]
    row, order = (clusters.flatten(1) + first).flatten().sort(stable=True)
    start = torch.searchsorted(row, torch.arange(batch * count + 1, device=row.device))
    return start, (order % max(1, clusters[:1].numel())).int()


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
    readers: object = None,
) -> Tensor:
    """Local attention over the nearest clusters; see :func:`aff_seg.ops.cluster_attention`.

    Autograd has no use for the readers.
    """
    batch, num_tokens, heads, dim = q.shape
    channels = heads * dim
    q = q * dim**-0.5
    blank_logit = torch.einsum("bnhd,hd->bnh", q, blank_k.view(heads, dim))
    k_rows, v_rows, flat_pos = k.flatten(0, 1).flatten(1), v.reshape(-1, dim), pos.reshape(-1, 2)
    first = num_tokens * torch.arange(batch, device=q.device)[:, None, None]
    head = torch.arange(heads, device=q.device)[:, None]
    out = []
    for part in _chunks(num_tokens, batch * clusters.shape[2] * m * channels):
        member, present = _members(clusters[:, part], m, num_tokens)
        row = member + first
        near_k = F.embedding(row, k_rows).unflatten(-1, (heads, dim))
        relative = relative_features(flat_pos[row] - pos[:, part, None])
        logit = (q[:, part, None] * near_k).sum(-1) + F.linear(relative, pos_weight, pos_bias)
        logit = logit.masked_fill(~present[..., None], -torch.inf)
        logit = torch.cat((logit, blank_logit[:, part, None]), dim=2)
        weight = logit.softmax(dim=2)
        row = row[:, :, None] * heads + head
        attended = _weighted_sum(v_rows, row, weight[:, :, :-1].transpose(2, 3))
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
    inner = weight.shape[0]
    rows = feat.reshape(-1, channels)
    first = num_tokens * torch.arange(batch, device=feat.device)[:, None, None]
    centre_pos = pos.gather(1, centre.long()[..., None].expand(-1, -1, 2))
    flat_pos = pos.reshape(-1, 2)
    out = []
    for part in _chunks(num_queries, batch * clusters.shape[2] * m * inner * 8):
        member, present = _members(clusters[:, part], m, num_tokens)
        row = member + first
        relative = relative_features(sign * (flat_pos[row] - centre_pos[:, part, None]))
        w = F.linear(relative, weight, bias)
        w = F.gelu(F.layer_norm(w, (inner,), norm_weight, norm_bias, norm_eps))
        w = w * present[..., None]
        if score is not None:
            w = w * score.reshape(-1)[row][..., None]
        row = row[:, :, None].expand(-1, -1, inner, -1)
        out.append(_weighted_sum(rows, row, w.transpose(2, 3)))
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
    batch, num_tokens, channels = feat.shape
    row = index.long() + num_tokens * torch.arange(batch, device=feat.device)[:, None, None]
    near = pos.reshape(-1, 2)[row]
    weight = _inverse_distance((near - query[:, :, None]).square().sum(-1), power)
    weight = weight / weight.sum(-1, keepdim=True)
    return _weighted_sum(feat.reshape(-1, channels), row, weight)


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
    image = torch.arange(batch, device=value.device).view(-1, 1, 1, 1, 1)
    head = torch.arange(heads, device=value.device).view(1, 1, -1, 1, 1, 1)
    level = torch.arange(levels, device=value.device).view(1, 1, 1, -1, 1)
    rows = value.reshape(batch * num_tokens * heads, dim)
    flat_pos = pos.reshape(batch * num_tokens, 2)
    out = []
    for part in _chunks(num_queries, batch * heads * levels * points * near * 8):
        loc = location[:, part]
        x, y = loc.detach().round().clamp(min=0).minimum(pixel_limit).long().unbind(-1)
        token = table[image, level, y, x].long()
        present = token >= 0
        token = token.clamp_min(0) + image[..., None] * num_tokens
        d2 = (loc[..., None, :] - flat_pos[token]).square().sum(-1)
        nearness = _inverse_distance(d2, power) * present
        share = nearness / nearness.sum(-1, keepdim=True) * weight[:, part, ..., None]
        row = token * heads + head
        out.append(_weighted_sum(rows, row.flatten(3), share.flatten(3)))
    return torch.cat(out, 1)
