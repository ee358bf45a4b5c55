"""Adaptive downsampling: which tokens survive, and what they take with them (section 3.3)."""

import torch
from torch import Tensor, nn

from aff_seg import ops
from aff_seg.backbone.clustering import Neighbourhood
from aff_seg.layers import Linear, by_parts


class PointConv(nn.Module):
    """Convolution on scattered tokens: a small network turns relative positions into weights.

    Args:
        in_channels: C.
        out_channels: C'.
        inner: weights per neighbour.
        sign: 1 to look from the centre at the neighbour, -1 the other way round.
    """

    def __init__(self, in_channels: int, out_channels: int, *, inner: int = 4, sign: int = 1):
        super().__init__()
        self.sign = sign
        self.weight_net = nn.Sequential(nn.Linear(5, inner), nn.LayerNorm(inner), nn.GELU())
        self.norm = nn.LayerNorm(inner * in_channels)
        self.linear = Linear(inner * in_channels, out_channels)

    def forward(
        self,
        feat: Tensor,
        pos: Tensor,
        centre: Tensor,
        nbhd: Neighbourhood,
        score: Tensor | None = None,
    ) -> Tensor:
        """Convolve at the centres.

        Args:
            feat: ``(B, N, C)`` features.
            pos: ``(B, N, 2)`` positions.
            centre: ``(B, Q)`` token index of each centre.
            nbhd: neighbourhoods of the centres, ``(B, Q, R)`` clusters.
            score: ``(B, N)`` factor on each neighbour, or None.

        Returns:
            ``(B, Q, C')``.
        """
        linear, norm, _ = self.weight_net

        def convolve(part: slice) -> Tensor:
            merged = ops.point_conv(
                feat,
                score,
                pos,
                centre[:, part],
                nbhd.clusters[:, part],
                nbhd.m,
                linear.weight,
                linear.bias,
                norm.weight,
                norm.bias,
                norm_eps=norm.eps,
                sign=self.sign,
            )
            return self.linear(self.norm(merged.flatten(2)))

        return by_parts(convolve, centre.shape[1], feat.device)


def grid_prior(pos: Tensor, stage: int) -> Tensor:
    """Tokens that a regular grid of the local density would keep.

    Args:
        pos: ``(B, N, 2)`` distinct whole positions.
        stage: 1, 2 or 3. Stage 1 lies on the full grid; later ones measure each token's
            distance to its nearest other token.

    Returns:
        ``(B, N)`` bool.
    """
    whole = pos.long()
    if stage == 1:
        return (whole % 2 == 0).all(-1)
    if pos.shape[1] == 1:
        return torch.ones_like(whole[..., 0], dtype=torch.bool)
    d2 = ops.knn(pos, pos, 2)[1][..., 1]
    # The exponent ceil(log2 d) + 1 from exact squared distances: the first e with 4^e >= d^2.
    powers = 4.0 ** torch.arange(16, device=pos.device)
    spacing = 2 ** (torch.bucketize(d2.contiguous(), powers.to(d2)) + 1)
    return (whole % spacing[..., None] == 0).all(-1)


def choose_centres(
    importance: Tensor,
    pos: Tensor,
    canvas: tuple[int, int],
    *,
    stage: int,
    alpha: float,
    rate: float,
    reserve: bool,
) -> Tensor:
    """The tokens that survive a stage.

    Args:
        importance: ``(B, N)`` in (0, 1), detached.
        pos: ``(B, N, 2)`` distinct whole positions.
        canvas: (H, W).
        stage: 1, 2 or 3.
        alpha: weight of the importance against the grid prior.
        rate: share of the tokens to keep.
        reserve: always keep tokens whose coordinates divide by ``2 ** (stage + 1)``.

    Returns:
        ``(B, N')`` int64 indices, ascending. Equal values go to the lower index.
    """
    height, width = canvas
    value = grid_prior(pos, stage).to(importance) + alpha * importance
    count = max(1, int(pos.shape[1] * rate))
    if reserve:
        stride = 2 ** (stage + 1)
        value = value.masked_fill((pos.long() % stride == 0).all(-1), torch.inf)
        count = max(count, -(-height // stride) * -(-width // stride))
    best = value.sort(dim=-1, descending=True, stable=True).indices[:, :count]
    return best.sort(dim=-1).values
