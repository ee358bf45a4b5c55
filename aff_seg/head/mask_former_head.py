"""The head: pixel decoder, then mask decoder."""

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from aff_seg.backbone.grid import as_points, levels_by_stride
from aff_seg.head.mask_decoder import TRANSFORMER_DECODER_REGISTRY
from aff_seg.structures import Points


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """From the backbone's tokens to class and mask logits of every query.

    Of a backbone with feature maps, each cell is a token.

    Args:
        strides: level of the backbone to its stride.
        pixel_decoder: tokens to mask features and memory.
        predictor: mask features and memory to predictions.
    """

    @configurable
    def __init__(self, *, strides: dict[str, int], pixel_decoder: nn.Module, predictor: nn.Module):
        super().__init__()
        self.strides = strides
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        pixel_decoder = SEM_SEG_HEADS_REGISTRY.get(cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME)
        predictor = TRANSFORMER_DECODER_REGISTRY.get(cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME)
        return {
            "strides": {level: shape.stride for level, shape in input_shape.items()},
            "pixel_decoder": pixel_decoder(cfg, levels_by_stride(input_shape)),
            "predictor": predictor(cfg),
        }

    def tokens(self, features: dict[str, Points | Tensor]) -> dict[str, Points]:
        """The backbone's output as tokens, see :func:`aff_seg.backbone.grid.as_points`."""
        return as_points(features, self.strides)

    def forward(self, features: dict[str, Points | Tensor]) -> dict:
        """Predictions of :class:`~aff_seg.head.mask_decoder.MultiScaleMaskedTransformerDecoder`."""
        return self.predictor(self.pixel_decoder(self.tokens(features)))
