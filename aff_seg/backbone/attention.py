"""Transformer blocks with attention over the nearest clusters (section 3.1.2 of the paper)."""

import torch
from torch import Tensor, nn

from aff_seg import ops
from aff_seg.backbone.clustering import Neighbourhood
from aff_seg.errors import UserError
from aff_seg.layers import Linear, by_parts


class ClusterAttention(nn.Module):
    """Multi-head self-attention over each token's neighbourhood and a learned blank token.

    Args:
        dim: channels C, a multiple of ``num_heads``.
        num_heads: heads.
        drop: dropout after the output projection.
    """

    def __init__(self, dim: int, num_heads: int, *, drop: float = 0.0):
        super().__init__()
        if dim % num_heads:
            raise UserError(f"dim must be a multiple of num_heads, got {dim} and {num_heads}")
        self.num_heads = num_heads
        self.q = Linear(dim, dim)
        self.kv = Linear(dim, 2 * dim)
        self.blank_k = nn.Parameter(torch.empty(dim))
        self.blank_v = nn.Parameter(torch.empty(dim))
        self.pos_embed = nn.Linear(5, num_heads)
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)
        nn.init.trunc_normal_(self.blank_k, std=0.02)
        nn.init.trunc_normal_(self.blank_v, std=0.02)

    def forward(self, x: Tensor, pos: Tensor, nbhd: Neighbourhood) -> Tensor:
        """``(B, N, C)`` tokens at ``(B, N, 2)`` positions to ``(B, N, C)``."""
        q = self.q(x).unflatten(-1, (self.num_heads, -1))
        k, v = self.kv(x).unflatten(-1, (self.num_heads, 2, -1)).unbind(-2)
        out = ops.cluster_attention(
            q,
            k,
            v,
            pos,
            nbhd.clusters,
            nbhd.m,
            self.pos_embed.weight,
            self.pos_embed.bias,
            self.blank_k,
            self.blank_v,
            readers=nbhd.readers,
        )
        return self.proj_drop(self.proj(out.flatten(2)))


class Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, dim: int, hidden: int, *, drop: float = 0.0):
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch of whole images, scaling the kept ones."""

    def __init__(self, prob: float):
        super().__init__()
        self.prob = prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.prob == 0:
            return x
        keep = x.new_empty(x.shape[0], *[1] * (x.dim() - 1)).bernoulli_(1 - self.prob)
        return x * (keep / (1 - self.prob))


class Block(nn.Module):
    """Pre-norm transformer block with optional layer scale.

    Args:
        dim: channels.
        num_heads: attention heads.
        mlp_ratio: hidden over outer channels of the MLP.
        layer_scale: initial value of the layer-scale vectors, 0 for none.
        drop: dropout of attention output and MLP.
        drop_path: probability of dropping a branch.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        layer_scale: float = 0.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = ClusterAttention(dim, num_heads, drop=drop)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=drop)
        self.drop_path = DropPath(drop_path)
        if layer_scale > 0:
            self.gamma1 = nn.Parameter(torch.full((dim,), layer_scale))
            self.gamma2 = nn.Parameter(torch.full((dim,), layer_scale))
        else:
            self.gamma1 = self.gamma2 = None

    def forward(self, x: Tensor, pos: Tensor, nbhd: Neighbourhood) -> Tensor:
        """``(B, N, C)`` tokens at ``(B, N, 2)`` positions to ``(B, N, C)``."""
        x = self._add(x, self.attn(self.norm1(x), pos, nbhd), self.gamma1)
        hidden = by_parts(lambda part: self.mlp(self.norm2(x[:, part])), x.shape[1], x.device)
        return self._add(x, hidden, self.gamma2)

    def _add(self, x: Tensor, branch: Tensor, gamma: Tensor | None) -> Tensor:
        return x + self.drop_path(branch if gamma is None else gamma * branch)
