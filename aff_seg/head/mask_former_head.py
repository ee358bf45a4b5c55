"""The head: pixel decoder, then mask decoder."""

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import nn

from aff_seg.head.mask_decoder import TRANSFORMER_DECODER_REGISTRY
from aff_seg.structures import Points


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """From the backbone's tokens to class and mask logits of every query.

    Args:
        pixel_decoder: tokens to mask features and memory.
        predictor: mask features and memory to predictions.
    """

    @configurable
    def __init__(self, *, pixel_decoder: nn.Module, predictor: nn.Module):
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        pixel_decoder = SEM_SEG_HEADS_REGISTRY.get(cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME)
        predictor = TRANSFORMER_DECODER_REGISTRY.get(cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME)
        return {"pixel_decoder": pixel_decoder(cfg, input_shape), "predictor": predictor(cfg)}

    def forward(self, features: dict[str, Points]) -> dict:
        """Predictions of :class:`~aff_seg.head.mask_decoder.MultiScaleMaskedTransformerDecoder`."""
        return self.predictor(self.pixel_decoder(features))
