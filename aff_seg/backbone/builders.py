"""Backbones as Detectron2 builds them from a config: feature maps of AFF, with FPN, and Swin."""

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone, SwinTransformer
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from aff_seg.backbone.aff import LEVELS, AutoFocusFormer
from aff_seg.backbone.attention import DropPath
from aff_seg.backbone.grid import to_grid
from aff_seg.errors import UserError


class AutoFocusFormerGrid(AutoFocusFormer):
    """AFF for whatever wants feature maps: each level is interpolated onto the grid of its stride.

    Parameters are those of :class:`~aff_seg.backbone.aff.AutoFocusFormer`, under the same names.
    """

    @property
    def size_divisibility(self) -> int:
        """The coarsest stride, so that every cell of a grid is whole."""
        return max(shape.stride for shape in self.output_shape().values())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps of every level.

        Args:
            images: ``(B, 3, h, w)`` normalised RGB, any size from 1x1.

        Returns:
            level name to ``(B, C, ceil(h / s), ceil(w / s))``, s the stride of the level.
        """
        shapes = self.output_shape()
        points = super().forward(images)
        return {level: to_grid(points[level], shapes[level].stride) for level in points}


@BACKBONE_REGISTRY.register()
def build_aff_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> AutoFocusFormerGrid:
    """AFF's feature maps ``MODEL.AFF.OUT_FEATURES``, among res2 to res5."""
    return AutoFocusFormerGrid(cfg, input_shape)


@BACKBONE_REGISTRY.register()
def build_aff_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """FPN on AFF's levels ``MODEL.FPN.IN_FEATURES``, as ``build_resnet_fpn_backbone`` has it."""
    return _fpn(cfg, _bottom_up(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_aff_retinanet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """As ``build_retinanet_resnet_fpn_backbone``: p6 and p7 are convolved from res5."""
    bottom_up = _bottom_up(cfg, input_shape)
    if "res5" not in bottom_up.output_shape():
        raise UserError(
            f"MODEL.FPN.IN_FEATURES is {cfg.MODEL.FPN.IN_FEATURES}; add res5, which p6 and p7 are "
            "made from."
        )
    coarsest = bottom_up.output_shape()["res5"].channels
    return _fpn(cfg, bottom_up, LastLevelP6P7(coarsest, cfg.MODEL.FPN.OUT_CHANNELS))


@BACKBONE_REGISTRY.register()
def build_swin_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SwinTransformer:
    """Detectron2's Swin Transformer with the sizes of ``MODEL.SWIN``; its levels are p0 to p3."""
    swin = cfg.MODEL.SWIN
    # It reads numbers from tensors, which the device "meta" does not have.
    with torch.device("cpu"):
        backbone = SwinTransformer(
            in_chans=input_shape.channels,
            embed_dim=swin.EMBED_DIM,
            depths=swin.DEPTHS,
            num_heads=swin.NUM_HEADS,
            window_size=swin.WINDOW_SIZE,
            # Its own stochastic depth would need the package timm.
            drop_path_rate=0.0,
        )
    blocks = [block for layer in backbone.layers for block in layer.blocks]
    for i, block in enumerate(blocks):
        block.drop_path = DropPath(swin.DROP_PATH_RATE * i / max(1, len(blocks) - 1))
    return backbone


def _bottom_up(cfg: CfgNode, input_shape: ShapeSpec) -> AutoFocusFormerGrid:
    wanted = cfg.MODEL.FPN.IN_FEATURES
    # An FPN adds each level to the next finer one.
    if not wanted or " ".join(wanted) not in " ".join(LEVELS):
        raise UserError(
            f"MODEL.FPN.IN_FEATURES is {wanted}; it must be levels that follow one another in "
            f"{', '.join(LEVELS)}."
        )
    return AutoFocusFormerGrid(cfg, input_shape, out_features=wanted)


def _fpn(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module) -> FPN:
    fpn = cfg.MODEL.FPN
    return FPN(
        bottom_up=bottom_up,
        in_features=fpn.IN_FEATURES,
        out_channels=fpn.OUT_CHANNELS,
        norm=fpn.NORM,
        top_block=top_block,
        fuse_type=fpn.FUSE_TYPE,
    )
