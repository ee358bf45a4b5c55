"""From the queries' logits of one image to semantic, panoptic and instance results.

Masks at full size are the largest thing that inference would hold, hundreds of times the image.
So they are made and used strip by strip: :class:`~aff_seg.inference.strips.MaskStrips` gives the
masks of some rows of the result, and each kind of result takes from them what it needs.
"""

from .instance import InstanceMasks, best_pairs, instance_inference
from .panoptic import PanopticVotes, confident_queries, panoptic_inference
from .semantic import SemanticScores, semantic_inference
from .strips import MaskStrips
from .tta import SemanticTTA

__all__ = [
    "InstanceMasks",
    "MaskStrips",
    "PanopticVotes",
    "SemanticScores",
    "SemanticTTA",
    "best_pairs",
    "confident_queries",
    "instance_inference",
    "panoptic_inference",
    "semantic_inference",
]
