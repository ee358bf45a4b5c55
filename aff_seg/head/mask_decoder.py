"""Masked transformer decoder: queries look at the tokens their last mask covers.

Shape legend: B images, Q queries, K classes, C channels, N tokens of a level, (H, W) canvas.
Source: Mask2Former, arXiv 2112.01527, section 3.2.
"""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from aff_seg.errors import UserError
from aff_seg.head.pixel_decoder import DecodedPixels
from aff_seg.head.position import sine_encoding
from aff_seg.layers import Linear, linear

TRANSFORMER_DECODER_REGISTRY = Registry("TRANSFORMER_DECODER")
TRANSFORMER_DECODER_REGISTRY.__doc__ = "Decoders from tokens to class and mask predictions."


class QueryAttention(nn.MultiheadAttention):
    """Multi-head attention of queries, batch first, without dropout."""

    def __init__(self, dim: int, heads: int):
        super().__init__(dim, heads, batch_first=True)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None
    ) -> Tensor:
        """Attend from the queries.

        Args:
            query: ``(B, Q, C)``.
            key, value: ``(B, N, C)``.
            visible: ``(B, Q, N)`` bool, False where a query must not look; None for all.

        Returns:
            ``(B, Q, C)``.
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        projected = (
            linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        mask = None if visible is None else visible[:, None]
        out = F.scaled_dot_product_attention(*projected, attn_mask=mask)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class SelfAttentionLayer(nn.Module):
    """Post-norm self-attention among the queries."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.self_attn = QueryAttention(dim, heads)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, encoding: Tensor) -> Tensor:
        located = x + encoding
        return self.norm(x + self.self_attn(located, located, x))


class CrossAttentionLayer(nn.Module):
    """Post-norm attention of queries to the tokens of a level, some of them hidden."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.multihead_attn = QueryAttention(dim, heads)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, encoding: Tensor, memory: Tensor, key: Tensor, visible: Tensor
    ) -> Tensor:
        """``visible`` is (B, Q, N) bool, False where a query must not look."""
        return self.norm(x + self.multihead_attn(x + encoding, key, memory, visible))


class FeedForwardLayer(nn.Module):
    """Post-norm feed-forward network with ReLU."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.linear1 = Linear(dim, hidden)
        self.linear2 = Linear(hidden, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.linear2(F.relu(self.linear1(x))))


class MaskEmbed(nn.Module):
    """Three linear layers with ReLU between."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.layers = nn.ModuleList([Linear(dim, dim), Linear(dim, dim), Linear(dim, out_dim)])

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.layers
        return last(F.relu(second(F.relu(first(x)))))


@TRANSFORMER_DECODER_REGISTRY.register()
class MultiScaleMaskedTransformerDecoder(nn.Module):
    """Decodes queries over the levels in turn, coarse to fine, each with its own mask.

    Args:
        hidden_dim: channels C of queries and memory.
        mask_dim: channels of the mask features.
        num_classes: K, without "no object".
        num_queries: Q.
        num_heads: attention heads.
        dim_feedforward: hidden channels.
        num_layers: layers; predictions are made before the first and after each.
        num_levels: levels of memory.
        deep_supervision: in training, return the predictions of every layer.
    """

    @configurable
    def __init__(
        self,
        *,
        hidden_dim: int = 256,
        mask_dim: int = 256,
        num_classes: int,
        num_queries: int = 100,
        num_heads: int = 8,
        dim_feedforward: int = 2048,
        num_layers: int = 9,
        num_levels: int = 3,
        deep_supervision: bool = True,
    ):
        super().__init__()
        self.deep_supervision = deep_supervision
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(hidden_dim, num_heads) for _ in range(num_layers)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(hidden_dim, num_heads) for _ in range(num_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForwardLayer(hidden_dim, dim_feedforward) for _ in range(num_layers)
        )
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(num_levels, hidden_dim)
        self.class_embed = Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MaskEmbed(hidden_dim, mask_dim)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        head, mask_former = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
        if head.CONVS_DIM != mask_former.HIDDEN_DIM:
            raise UserError(
                "MODEL.SEM_SEG_HEAD.CONVS_DIM and MODEL.MASK_FORMER.HIDDEN_DIM must be equal, "
                f"got {head.CONVS_DIM} and {mask_former.HIDDEN_DIM}"
            )
        return {
            "hidden_dim": mask_former.HIDDEN_DIM,
            "mask_dim": head.MASK_DIM,
            "num_classes": head.NUM_CLASSES,
            "num_queries": mask_former.NUM_OBJECT_QUERIES,
            "num_heads": mask_former.NHEADS,
            "dim_feedforward": mask_former.DIM_FEEDFORWARD,
            "num_layers": mask_former.DEC_LAYERS - 1,
            "num_levels": len(head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES),
            "deep_supervision": mask_former.DEEP_SUPERVISION,
        }

    def forward(self, pixels: DecodedPixels) -> dict:
        """Predict classes and masks.

        Returns:
            ``pred_logits`` (B, Q, K + 1), ``pred_masks`` (B, Q, H, W) logits on the canvas; in
            training also ``aux_outputs``, a list of the same two of every earlier prediction.
        """
        memory, key, level_features = [], [], []
        pixel_rows = pixels.mask_features.flatten(2).transpose(1, 2)
        image = torch.arange(len(pixel_rows), device=pixel_rows.device)[:, None]
        for level, embed in zip(pixels.levels, self.level_embed.weight, strict=True):
            memory.append(level.feat + embed)
            key.append(memory[-1] + sine_encoding(level.pos, embed.shape[0]))
            # Tokens sit on canvas pixels: their mask logit is that pixel's.
            level_features.append(pixel_rows[image, level.pixel_index])

        batch = len(pixels.mask_features)
        supervise = self.training and self.deep_supervision
        x = self.query_feat.weight.expand(batch, -1, -1)
        encoding = self.query_embed.weight
        early = []
        for i, (cross, own, ffn) in enumerate(
            zip(
                self.transformer_cross_attention_layers,
                self.transformer_self_attention_layers,
                self.transformer_ffn_layers,
                strict=True,
            )
        ):
            level = i % len(memory)
            normed = self.decoder_norm(x)
            if supervise:
                early.append(self._predict(normed, pixels.mask_features))
            visible = self._visible_tokens(normed, level_features[level])
            x = cross(x, encoding, memory[level], key[level], visible)
            x = ffn(own(x, encoding))
        out = self._predict(self.decoder_norm(x), pixels.mask_features)
        if supervise:
            out["aux_outputs"] = early
        return out

    def _predict(self, x: Tensor, mask_features: Tensor) -> dict[str, Tensor]:
        masks = torch.einsum("bqc,bchw->bqhw", self.mask_embed(x), mask_features)
        return {"pred_logits": self.class_embed(x), "pred_masks": masks}

    @torch.no_grad()
    def _visible_tokens(self, x: Tensor, features: Tensor) -> Tensor:
        """Tokens inside each query's mask, (B, Q, N); all for a query that would see none.

        ``features`` (B, N, C) are the mask features at the tokens of the level.
        """
        visible = self.mask_embed(x) @ features.transpose(1, 2) >= 0
        return visible | ~visible.any(-1, keepdim=True)
