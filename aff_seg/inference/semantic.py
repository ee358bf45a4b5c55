"""Semantic results. Shape legend: Q queries, K classes (index K is "no object"), (h, w) pixels."""

import torch.nn.functional as F
from torch import Tensor

from .strips import MaskStrips, Strip


class SemanticScores:
    """Class scores of every pixel, gathered strip by strip.

    Args:
        mask_cls: ``(Q, K + 1)`` class logits.
        size: (h, w).
    """

    def __init__(self, mask_cls: Tensor, size: tuple[int, int]):
        # Of a convolution of size 1 whose channels are queries in, classes out.
        self._weight = mask_cls.softmax(-1)[:, :-1].t()[..., None, None]
        self._scores = mask_cls.new_empty(len(self._weight), *size)

    def add(self, strip: Strip) -> None:
        self._scores[:, strip.rows] = F.conv2d(strip.probability[None], self._weight)[0]

    def result(self) -> Tensor:
        """``(K, h, w)``."""
        return self._scores


def semantic_inference(mask_cls: Tensor, mask_pred: Tensor) -> Tensor:
    """Class scores of every pixel.

    Args:
        mask_cls: ``(Q, K + 1)`` class logits.
        mask_pred: ``(Q, h, w)`` mask logits.

    Returns:
        ``(K, h, w)``, each query's class probabilities summed with its mask as weight.
    """
    strips = MaskStrips(mask_pred)
    scores = SemanticScores(mask_cls, strips.size)
    for strip in strips:
        scores.add(strip)
    return scores.result()
