"""What one would pick instead of the operators of this project.

Shape legend as in :mod:`aff_seg.ops`. The attentions here leave out the blank token.
"""

from collections.abc import Callable

import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from aff_seg import ops

_CHUNK_PAIRS = 1 << 26
_BLOCK = 128


def tree_knn(query: Tensor, database: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """scipy's k-d tree, built anew, with all cores; of one image."""
    distance, index = cKDTree(database[0].cpu().numpy()).query(
        query[0].cpu().numpy(), k=k, workers=-1
    )
    return torch.from_numpy(index)[None], torch.from_numpy(distance)[None].square()


def cdist_knn(query: Tensor, database: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """All distances, some queries at a time, and the smallest of them."""
    step = max(1, _CHUNK_PAIRS // database.shape[1])
    found = [
        torch.cdist(part, database).topk(k, dim=-1, largest=False)
        for part in query.split(step, dim=1)
    ]
    index = torch.cat([part.indices for part in found], dim=1)
    return index, torch.cat([part.values for part in found], dim=1).square()


def gathered_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos: Tensor,
    clusters: Tensor,
    m: int,
    pos_weight: Tensor,
    pos_bias: Tensor,
) -> Tensor:
    """Every token's neighbours gathered, then products by einsum."""
    batch, num_tokens, _, dim = q.shape
    member = clusters.long()[..., None] * m + torch.arange(m, device=q.device)
    present = (member < num_tokens).flatten(2)
    member = member.flatten(2).clamp_max(num_tokens - 1)
    image = torch.arange(batch, device=q.device)[:, None, None]
    relative = ops.relative_features(pos[image, member] - pos[:, :, None])
    logit = torch.einsum("bnhd,bnjhd->bnjh", q, k[image, member]) * dim**-0.5
    logit = logit + relative @ pos_weight.T + pos_bias
    weight = logit.masked_fill(~present[..., None], -torch.inf).softmax(2)
    return torch.einsum("bnjh,bnjhd->bnhd", weight, v[image, member])


def flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pos: Tensor,
    clusters: Tensor,
    m: int,
    pos_weight: Tensor,
    pos_bias: Tensor,
    *,
    backward: bool = False,
) -> Callable[[], object]:
    """A call of compiled flex_attention on blocks of 128 tokens; of one image.

    Blocks that no neighbourhood touches are left out, which takes the list of clusters and is
    not part of the call, as it would serve all blocks of a stage. With ``backward`` the call also
    computes the gradients of q, k and v.
    """
    torch.compiler.reset()  # or compiling for ever new functions comes to an end
    num_tokens = q.shape[1]
    # Tensors that the two functions below read must be no views, or compiling fails.
    x, y = (column.clone() for column in pos[0].unbind(-1))
    near = [column.clone() for column in clusters[0].unbind(-1)]
    pos_weight, pos_bias = pos_weight.clone(), pos_bias.clone()

    def visible(_image: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        cluster = key // m
        found = near[0][query] == cluster
        for column in near[1:]:
            found = found | (column[query] == cluster)
        return found

    def located(score: Tensor, _image: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        dx, dy = x[key] - x[query], y[key] - y[query]
        r = torch.sqrt(dx * dx + dy * dy)
        inverse = torch.where(r > 0, 1 / r.clamp_min(1e-12), 0.0)
        for i, feature in enumerate((dx, dy, r, dy * inverse, dx * inverse)):
            score = score + pos_weight[head, i] * feature
        return score + pos_bias[head]

    mask = _block_mask(clusters[0], m, num_tokens, visible)
    heads_first = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
    compiled = torch.compile(flex_attention, dynamic=False)

    def forward() -> Tensor:
        return compiled(*heads_first, score_mod=located, block_mask=mask).transpose(1, 2)

    def both() -> tuple[Tensor, ...]:
        out = forward()
        return torch.autograd.grad(out, heads_first, torch.ones_like(out))

    if not backward:
        return forward
    heads_first = [x.requires_grad_() for x in heads_first]
    return both


def _block_mask(clusters: Tensor, m: int, num_tokens: int, visible: Callable) -> BlockMask:
    blocks = -(-num_tokens // _BLOCK)
    touched = torch.zeros(blocks, blocks, dtype=torch.int32, device=clusters.device)
    row = torch.arange(num_tokens, device=clusters.device)[:, None].expand_as(clusters) // _BLOCK
    # A cluster may lie across two blocks, or more if it is large.
    for offset in {*range(0, m, _BLOCK), m - 1}:
        token = (clusters.long() * m + offset).clamp_max(num_tokens - 1)
        touched[row, token // _BLOCK] = 1
    order = touched.argsort(dim=1, descending=True, stable=True).int()
    return BlockMask.from_kv_blocks(
        touched.sum(1, dtype=torch.int32)[None, None],
        order[None, None],
        BLOCK_SIZE=_BLOCK,
        mask_mod=visible,
        seq_lengths=(num_tokens, num_tokens),
    )
