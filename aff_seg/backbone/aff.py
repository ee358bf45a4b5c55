"""AutoFocusFormer: a backbone whose tokens gather where the picture is busy.

Shape legend: B images, N tokens of a stage, C channels, (H, W) canvas of stride-4 pixels.
Source: arXiv 2304.12406.
"""

import numbers
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aff_seg.backbone.attention import Block
from aff_seg.backbone.clustering import (
    Neighbourhood,
    cluster_grid,
    cluster_tokens,
    everyone,
    grid_positions,
)
from aff_seg.backbone.merging import PointConv, choose_centres
from aff_seg.errors import UserError
from aff_seg.structures import Points

LEVELS = ("res2", "res3", "res4", "res5")


class PatchEmbed(nn.Module):
    """Image to stride-4 tokens: two 3x3 convolutions of stride 2.

    Args:
        dim: channels C of the tokens.
        norm: LayerNorm on the tokens.
    """

    def __init__(self, dim: int, *, norm: bool = True):
        super().__init__()
        self.proj1 = nn.Conv2d(3, dim // 2, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(dim // 2)
        self.act = nn.GELU()
        self.proj2 = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """``(B, 3, h, w)`` to ``(B, H * W, C)`` in raster order, and (H, W)."""
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % 4, 0, -height % 4))
        # Channels last: so tokens come out in rows, and the convolutions are faster.
        images = images.contiguous(memory_format=torch.channels_last)
        x = self.proj2(self.act(self.bn(self.proj1(images))))
        return self.norm(x.flatten(2).transpose(1, 2)), (x.shape[2], x.shape[3])


class Stage(nn.Module):
    """Blocks of one stage and, but for the last, the choice and merging of the survivors.

    Args:
        index: 1 to 4.
        dim: channels.
        next_dim: channels of the next stage, None for the last.
        blocks: the transformer blocks.
        cluster_size, nbhd_size: tokens per cluster and wanted in a neighbourhood.
        alpha, rate, reserve: see :func:`aff_seg.backbone.merging.choose_centres`.
        checkpoint: compute the blocks' activations again in the backward pass.
    """

    def __init__(
        self,
        index: int,
        dim: int,
        next_dim: int | None,
        blocks: Sequence[Block],
        *,
        cluster_size: int,
        nbhd_size: int,
        alpha: float,
        rate: float,
        reserve: bool,
        checkpoint: bool = False,
    ):
        super().__init__()
        self.index = index
        self.checkpoint = checkpoint
        self.cluster_size = cluster_size
        self.nbhd_size = nbhd_size
        self.alpha, self.rate, self.reserve = alpha, rate, reserve
        self.blocks = nn.ModuleList(blocks)
        self.downsample = self.prob_net = None
        if next_dim is not None:
            self.downsample = PointConv(dim, next_dim)
            self.prob_net = nn.Linear(dim, 1)

    def forward(
        self, feat: Tensor, pos: Tensor, canvas: tuple[int, int]
    ) -> tuple[Points, Tensor | None, Tensor | None]:
        """Run the stage.

        Args:
            feat: ``(B, N, C)``.
            pos: ``(B, N, 2)``; stage 1 gets the full grid in raster order.
            canvas: (H, W).

        Returns:
            the stage's output tokens, then features and positions of the next stage (None
            after the last).
        """
        feat, pos, nbhd = self._cluster(feat, pos, canvas)
        if torch.is_grad_enabled() and (
            feat.requires_grad or any(p.requires_grad for p in self.blocks.parameters())
        ):
            nbhd = nbhd.with_readers()
        for block in self.blocks:
            if self.checkpoint and torch.is_grad_enabled():
                feat = checkpoint(block, feat, pos, nbhd, use_reentrant=False)
            else:
                feat = block(feat, pos, nbhd)
        if self.downsample is None:
            return Points(feat, pos, canvas, cluster_size=nbhd.m), None, None

        # Sixteen bits would round many scores to the same.
        with torch.autocast(feat.device.type, enabled=False):
            score = self.prob_net(feat.to(self.prob_net.weight)).squeeze(-1).sigmoid()
        survivors = choose_centres(
            score.detach(),
            pos,
            canvas,
            stage=self.index,
            alpha=self.alpha,
            rate=self.rate,
            reserve=self.reserve,
        )
        near = Neighbourhood(_take(nbhd.clusters, survivors), nbhd.m)
        merged = self.downsample(feat, pos, survivors, near, score)
        points = Points(feat, pos, canvas, score.detach(), survivors, nbhd.m)
        return points, merged, _take(pos, survivors)

    def _cluster(
        self, feat: Tensor, pos: Tensor, canvas: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Neighbourhood]:
        batch, num_tokens, _ = feat.shape
        if self.nbhd_size >= num_tokens:
            return feat, pos, everyone(pos)
        if self.index == 1:
            order, nbhd = cluster_grid(canvas, self.cluster_size, self.nbhd_size, pos.device)
            pos = pos[:1, order[0]].expand(batch, -1, -1)
            clusters = nbhd.clusters.expand(batch, -1, -1)
            return feat[:, order[0]], pos, Neighbourhood(clusters, nbhd.m)
        order, nbhd = cluster_tokens(pos, canvas, self.cluster_size, self.nbhd_size)
        return _take(feat, order), _take(pos, order), nbhd


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` (B, M) of ``x`` (B, N, C): (B, M, C)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


@BACKBONE_REGISTRY.register()
class AutoFocusFormer(Backbone):
    """The four stages of AFF.

    Args:
        embed_dim, depths, num_heads: per stage.
        mlp_ratio: hidden over outer channels of the MLPs.
        cluster_size: tokens per cluster.
        nbhd_size: tokens wanted in a neighbourhood, per stage.
        layer_scale: initial layer scale, 0 for none.
        alpha: weight of the learned importance against the grid prior.
        ds_rate: share of the tokens each downsampling keeps.
        reserve: always keep the coarse grid.
        drop_rate, drop_path_rate: dropout; largest stochastic depth (grows linearly from 0).
        patch_norm: LayerNorm after the patch embedding.
        checkpoint_blocks: compute activations of blocks again in the backward pass.
        out_features: levels to return; stages after the last of them are not built.

    Raises:
        UserError: if the lists disagree in length or a value is out of range.
    """

    @configurable
    def __init__(
        self,
        *,
        embed_dim: Sequence[int],
        depths: Sequence[int],
        num_heads: Sequence[int],
        mlp_ratio: float,
        cluster_size: int = 8,
        nbhd_size: Sequence[int] = (48, 48, 48, 48),
        layer_scale: float = 0.0,
        alpha: float = 4.0,
        ds_rate: float = 0.25,
        reserve: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        patch_norm: bool = True,
        checkpoint_blocks: bool = False,
        out_features: Sequence[str] = LEVELS,
    ):
        super().__init__()
        per_stage = {
            "embed_dim": embed_dim,
            "depths": depths,
            "num_heads": num_heads,
            "nbhd_size": nbhd_size,
        }
        for name, value in per_stage.items():
            if len(value) != len(LEVELS):
                raise UserError(f"{name} needs {len(LEVELS)} values, one a stage; got {value}")
        _check_rate(ds_rate)
        if set(out_features) - set(LEVELS) or not out_features:
            raise UserError(f"out_features must be among {LEVELS}, got {list(out_features)}")

        self.patch_embed = PatchEmbed(embed_dim[0], norm=patch_norm)
        self.pos_drop = nn.Dropout(drop_rate)
        steps = max(1, sum(depths) - 1)
        drop_path = [drop_path_rate * i / steps for i in range(sum(depths))]
        self.layers = nn.ModuleList()
        # Up to the last level that is wanted: no parameter goes without a gradient.
        wanted = max(LEVELS.index(level) for level in out_features) + 1
        for i, depth in enumerate(depths[:wanted]):
            blocks = [
                Block(
                    embed_dim[i],
                    num_heads[i],
                    mlp_ratio=mlp_ratio,
                    layer_scale=layer_scale,
                    drop=drop_rate,
                    drop_path=drop_path.pop(0),
                )
                for _ in range(depth)
            ]
            stage = Stage(
                i + 1,
                embed_dim[i],
                embed_dim[i + 1] if i + 1 < wanted else None,
                blocks,
                cluster_size=cluster_size,
                nbhd_size=nbhd_size[i],
                alpha=alpha,
                rate=ds_rate,
                reserve=reserve,
                checkpoint=checkpoint_blocks,
            )
            self.layers.append(stage)
            if LEVELS[i] in out_features:
                self.add_module(f"norm{i}", nn.LayerNorm(embed_dim[i]))

        self._out_features = list(out_features)
        self._out_feature_channels = dict(zip(LEVELS, embed_dim, strict=True))
        self._out_feature_strides = {level: 4 * 2**i for i, level in enumerate(LEVELS)}
        self.apply(_init_linear)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict:
        aff = cfg.MODEL.AFF
        if aff.ATTN_DROP_RATE != 0:
            raise UserError(
                f"MODEL.AFF.ATTN_DROP_RATE must be 0, got {aff.ATTN_DROP_RATE}: attention weights "
                "are never stored, so they cannot be dropped; use DROP_RATE or DROP_PATH_RATE."
            )
        return {
            "embed_dim": aff.EMBED_DIM,
            "depths": aff.DEPTHS,
            "num_heads": aff.NUM_HEADS,
            "mlp_ratio": aff.MLP_RATIO,
            "cluster_size": aff.CLUSTER_SIZE,
            "nbhd_size": aff.NBHD_SIZE,
            "layer_scale": aff.LAYER_SCALE,
            "alpha": aff.ALPHA,
            "ds_rate": aff.DS_RATE,
            "reserve": aff.RESERVE,
            "drop_rate": aff.DROP_RATE,
            "drop_path_rate": aff.DROP_PATH_RATE,
            "patch_norm": aff.PATCH_NORM,
            "checkpoint_blocks": aff.CHECKPOINT_BLOCKS,
            "out_features": aff.OUT_FEATURES,
        }

    @property
    def ds_rate(self) -> float:
        """Share of the tokens that each downsampling keeps.

        It may be set at any time: another than that of the training trades accuracy for time.
        """
        return self.layers[0].rate

    @ds_rate.setter
    def ds_rate(self, rate: float) -> None:
        _check_rate(rate)
        for stage in self.layers:
            stage.rate = rate

    def forward(self, images: Tensor) -> dict[str, Points]:
        """Tokens of every level.

        Args:
            images: ``(B, 3, h, w)`` normalised RGB, any size from 1x1.

        Returns:
            level name to :class:`~aff_seg.structures.Points`, normalised features in the order
            the stage clustered them.

        Raises:
            ValueError: if ``images`` has another shape or no pixel.
        """
        if images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise ValueError(f"images must be (B, 3, h, w) with pixels, got {tuple(images.shape)}")
        feat, canvas = self.patch_embed(images)
        feat = self.pos_drop(feat)
        pos = grid_positions(canvas, feat.device).expand(len(feat), -1, -1)
        out = {}
        for i, (level, stage) in enumerate(zip(LEVELS, self.layers, strict=False)):
            points, feat, pos = stage(feat, pos, canvas)
            if level in self._out_features:
                normed = getattr(self, f"norm{i}")(points.feat)
                out[level] = replace(points, feat=normed)
        return out

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and nominal stride of each level."""
        return {
            level: ShapeSpec(
                channels=self._out_feature_channels[level],
                stride=self._out_feature_strides[level],
            )
            for level in self._out_features
        }


def _check_rate(rate: float) -> None:
    if not isinstance(rate, numbers.Real) or not 0 < rate <= 1:
        raise UserError(f"ds_rate must be above 0 and at most 1, got {rate!r}")


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
