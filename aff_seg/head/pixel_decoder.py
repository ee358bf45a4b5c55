"""Point-cloud pixel decoder: deformable attention among scattered tokens, then a step to res2.

Shape legend: B images, N tokens of a level, C = ``conv_dim`` channels, L levels (res5, res4,
res3 in this order), P sampling points, (H, W) canvas of stride-4 pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from aff_seg import ops
from aff_seg.backbone.clustering import Neighbourhood, grid_positions
from aff_seg.backbone.grid import INTERPOLATION_NEIGHBOURS, INTERPOLATION_POWER
from aff_seg.backbone.merging import PointConv
from aff_seg.errors import UserError
from aff_seg.head.position import sine_encoding
from aff_seg.layers import Linear, by_parts
from aff_seg.structures import Points

# Neighbours of the last convolution.
CONV_NEIGHBOURS = 9


@dataclass(frozen=True)
class DecodedPixels:
    """What the pixel decoder hands to the mask decoder.

    Attributes:
        mask_features: ``(B, C, H, W)`` features of every canvas pixel.
        levels: memory of the mask decoder, coarse to fine (res5, res4, res3).
    """

    mask_features: Tensor
    levels: list[Points]


class DeformablePointAttention(nn.Module):
    """Multi-scale deformable attention whose values lie on scattered tokens.

    Args:
        dim: channels, a multiple of ``heads``.
        heads, levels, points: per query, ``levels * points`` samples for each head.
        shepard_power: exponent of inverse-distance interpolation on distances.
        learn_power: make the exponent a parameter.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        levels: int,
        points: int,
        shepard_power: float,
        learn_power: bool,
    ):
        super().__init__()
        if dim % heads:
            raise UserError(f"dim must be a multiple of heads, got {dim} and {heads}")
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = Linear(dim, heads * levels * points * 2)
        self.attention_weights = Linear(dim, heads * levels * points)
        self.value_proj = Linear(dim, dim)
        self.output_proj = Linear(dim, dim)
        # Distances come squared, so their exponent is half of the configured one.
        power = torch.tensor([shepard_power / 2])
        if learn_power:
            self.shepard_power = nn.Parameter(power)
        else:
            self.register_buffer("shepard_power", power, persistent=False)

    def reset_parameters(self) -> None:
        """Offsets in ``heads`` directions growing with the point index; uniform attention."""
        angle = torch.arange(self.heads, dtype=torch.float64) * (2 * math.pi / self.heads)
        direction = torch.stack((angle.cos(), angle.sin()), -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1.0)
        offsets = direction[:, None, None] * steps[:, None]
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def values(self, tokens: Tensor) -> Tensor:
        """Project tokens ``(B, N, C)`` to what queries read, ``(B, N, heads, C / heads)``."""
        return self.value_proj(tokens).unflatten(-1, (self.heads, -1))

    def forward(
        self, query: Tensor, query_pos: Tensor, value: Tensor, pos: Tensor, table: Tensor
    ) -> Tensor:
        """Attend from some tokens to all levels.

        Args:
            query: ``(B, Q, C)`` tokens plus encodings.
            query_pos: ``(B, Q, 2)`` their positions.
            value: :meth:`values` of all N tokens, all levels one after the other.
            pos: ``(B, N, 2)`` their positions.
            table: ``(B, L, H, W, K)``, see :func:`aff_seg.ops.deformable_points`.

        Returns:
            ``(B, Q, C)``.
        """
        samples = (self.heads, self.levels, self.points)
        offset = self.sampling_offsets(query).unflatten(-1, (*samples, 2))
        weight = self.attention_weights(query).unflatten(-1, (self.heads, -1)).softmax(-1)
        out = ops.deformable_points(
            value,
            pos,
            table,
            query_pos[:, :, None, None, None] + offset,
            weight.unflatten(-1, samples[1:]),
            self.shepard_power,
        )
        return self.output_proj(out.flatten(2))


class EncoderLayer(nn.Module):
    """Post-norm layer: deformable attention, then a feed-forward network with ReLU."""

    def __init__(self, attention: DeformablePointAttention, dim: int, dim_feedforward: int):
        super().__init__()
        self.self_attn = attention
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = Linear(dim, dim_feedforward)
        self.linear2 = Linear(dim_feedforward, dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, encoding: Tensor, pos: Tensor, table: Tensor) -> Tensor:
        value = self.self_attn.values(x)

        def refine(part: slice) -> Tensor:
            own = x[:, part]
            read = self.self_attn(own + encoding[:, part], pos[:, part], value, pos, table)
            own = self.norm1(own + read)
            return self.norm2(own + self.linear2(F.relu(self.linear1(own), inplace=True)))

        return by_parts(refine, x.shape[1], x.device)


class Encoder(nn.Module):
    """The stack of layers, held apart to carry its published name."""

    def __init__(self, layers: Sequence[EncoderLayer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)


class PointTransformer(nn.Module):
    """Encoder over the tokens of all levels, with a learned embedding per level."""

    def __init__(self, dim: int, layers: Sequence[EncoderLayer], num_levels: int):
        super().__init__()
        self.level_embed = nn.Parameter(torch.empty(num_levels, dim))
        self.encoder = Encoder(layers)
        for parameter in self.encoder.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for layer in self.encoder.layers:
            layer.self_attn.reset_parameters()
        nn.init.normal_(self.level_embed)

    def forward(self, levels: list[Points], table: Tensor) -> list[Points]:
        """Tokens of every level to refined tokens of every level."""
        tokens = torch.cat([level.feat for level in levels], dim=1)
        pos = torch.cat([level.pos for level in levels], dim=1)
        encoding = torch.cat(
            [
                sine_encoding(level.pos, tokens.shape[-1]) + embed
                for level, embed in zip(levels, self.level_embed, strict=True)
            ],
            dim=1,
        )
        for layer in self.encoder.layers:
            tokens = layer(tokens, encoding, pos, table)
        parts = tokens.split([level.feat.shape[1] for level in levels], dim=1)
        return [
            Points(part, level.pos, level.canvas) for part, level in zip(parts, levels, strict=True)
        ]


@SEM_SEG_HEADS_REGISTRY.register()
class MSDeformAttnPixelDecoder(nn.Module):
    """Refines res5, res4, res3 with deformable attention and carries res3 down to res2.

    Args:
        input_shape: channels of each level of the backbone.
        transformer_in_features: levels of the encoder.
        conv_dim: channels C.
        mask_dim: channels of the mask features.
        num_layers, num_heads, num_points, dim_feedforward: of the encoder.
        shepard_power, shepard_power_learnable: exponent of inverse-distance interpolation on
            distances; whether each layer learns its own.

    Raises:
        UserError: if a level is missing.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        transformer_in_features: Sequence[str] = ("res3", "res4", "res5"),
        conv_dim: int = 256,
        mask_dim: int = 256,
        num_layers: int = 6,
        num_heads: int = 8,
        num_points: int = 4,
        dim_feedforward: int = 1024,
        shepard_power: float = 6.0,
        shepard_power_learnable: bool = True,
    ):
        super().__init__()
        #: Coarse to fine.
        self.level_names = sorted(transformer_in_features, reverse=True)
        if missing := {"res2", *self.level_names} - set(input_shape):
            raise UserError(
                f"the pixel decoder needs {sorted(missing)} of the backbone, which gives "
                f"{sorted(input_shape)}"
            )

        def projection(level: str) -> nn.Sequential:
            return nn.Sequential(
                Linear(input_shape[level].channels, conv_dim), nn.LayerNorm(conv_dim)
            )

        self.input_proj = nn.ModuleList(projection(level) for level in self.level_names)
        layers = [
            EncoderLayer(
                DeformablePointAttention(
                    conv_dim,
                    heads=num_heads,
                    levels=len(self.level_names),
                    points=num_points,
                    shepard_power=shepard_power,
                    learn_power=shepard_power_learnable,
                ),
                conv_dim,
                dim_feedforward,
            )
            for _ in range(num_layers)
        ]
        self.transformer = PointTransformer(conv_dim, layers, len(self.level_names))
        self.adapter_1 = projection("res2")
        self.layer_1 = nn.Sequential(
            PointConv(conv_dim, conv_dim, sign=-1), nn.LayerNorm(conv_dim), nn.ReLU()
        )
        self.mask_features = Linear(conv_dim, mask_dim)
        for module in (self.input_proj, self.adapter_1, self.layer_1, self.mask_features):
            module.apply(_init_linear)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": input_shape,
            "transformer_in_features": head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES,
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "num_layers": head.TRANSFORMER_ENC_LAYERS,
            "num_heads": head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS,
            "num_points": head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS,
            "dim_feedforward": head.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD,
            "shepard_power": cfg.MODEL.AFF.SHEPARD_POWER,
            "shepard_power_learnable": cfg.MODEL.AFF.SHEPARD_POWER_LEARNABLE,
        }

    def forward(self, features: dict[str, Points]) -> DecodedPixels:
        """Backbone tokens to mask features and memory. Runs in float32 even under autocast."""
        with torch.autocast(features["res2"].feat.device.type, enabled=False):
            levels = []
            for level, project in zip(self.level_names, self.input_proj, strict=True):
                points = features[level]
                levels.append(Points(project(points.feat.float()), points.pos, points.canvas))
            tables = [_nearest_tokens(level, INTERPOLATION_NEIGHBOURS) for level in levels]
            levels = self.transformer(levels, _merge_tables(tables, levels))
            fine = self._at_res2(features["res2"], levels[-1], tables[-1])
            return DecodedPixels(self._on_canvas(fine, features["res2"]), levels)

    def _at_res2(self, res2: Points, res3: Points, table: Tensor) -> Tensor:
        """Carry the finest level of the encoder down to the tokens of res2, ``(B, N, C)``."""

        def add(part: slice) -> Tensor:
            near = res2.pixel_index[:, part, None].expand(-1, -1, table.shape[2])
            upsampled = ops.shepard_interpolate(
                res3.feat, res3.pos, res2.pos[:, part], table.gather(1, near), INTERPOLATION_POWER
            )
            return self.adapter_1(res2.feat[:, part].float()) + upsampled

        return by_parts(add, res2.feat.shape[1], res2.feat.device)

    def _on_canvas(self, feat: Tensor, res2: Points) -> Tensor:
        """Mask features of every pixel, ``(B, C, H, W)``; res2 has a token on each."""
        near = _nearest_tokens(res2, CONV_NEIGHBOURS)
        token = res2.pixel_index.argsort(dim=1)
        conv, norm, act = self.layer_1

        def convolve(part: slice) -> Tensor:
            nbhd = Neighbourhood(near[:, part], 1)
            return self.mask_features(act(norm(conv(feat, res2.pos, token[:, part], nbhd))))

        laid = by_parts(convolve, feat.shape[1], feat.device)
        return laid.transpose(1, 2).unflatten(-1, res2.canvas)


def _nearest_tokens(level: Points, count: int) -> Tensor:
    """Tokens nearest to each pixel in raster order, ``(B, H * W, K)`` int32, K <= ``count``."""
    batch, num_tokens, _ = level.pos.shape
    pixels = grid_positions(level.canvas, level.pos.device).to(level.pos).expand(batch, -1, -1)
    return ops.knn(pixels, level.pos, min(count, num_tokens))[0]


def _merge_tables(tables: list[Tensor], levels: list[Points]) -> Tensor:
    """Tables of all levels, indexing their concatenation: ``(B, L, H, W, K)``, -1 for absent."""
    start, merged = 0, []
    for table, level in zip(tables, levels, strict=True):
        table = F.pad(table + start, (0, INTERPOLATION_NEIGHBOURS - table.shape[2]), value=-1)
        merged.append(table.unflatten(1, level.canvas))
        start += level.pos.shape[1]
    return torch.stack(merged, dim=1)


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
