"""Point-cloud Mask2Former head."""

from .mask_decoder import TRANSFORMER_DECODER_REGISTRY, MultiScaleMaskedTransformerDecoder
from .mask_former_head import MaskFormerHead
from .pixel_decoder import MSDeformAttnPixelDecoder

__all__ = [
    "TRANSFORMER_DECODER_REGISTRY",
    "MSDeformAttnPixelDecoder",
    "MaskFormerHead",
    "MultiScaleMaskedTransformerDecoder",
]
