"""A trained model for pictures of any size."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge, ResizeTransform
from detectron2.modeling import build_model

from aff_seg.engine.checkpoint import Checkpointer
from aff_seg.errors import UserError

# A result has at most this many pixels, those of a Cityscapes image: every query has a mask of
# this size in memory. Bigger images get a smaller result.
MAX_RESULT_PIXELS = 1024 * 2048


@dataclass(frozen=True)
class Prediction:
    """What the model says about one image.

    Attributes:
        result: as the model gives it; its maps have the size of the image, or one smaller by
            the same factor both ways, see :mod:`aff_seg.prediction.segments`.
        tokens: per level, "res2" to "res5", ``(N, 2)`` int64 positions of the tokens, (x, y) in
            stride-4 pixels of the network's input. Some may lie in its padding.
        input_size: (H, W) in pixels that the image had in the network's input, without padding.
    """

    result: dict[str, Any]
    tokens: dict[str, np.ndarray]
    input_size: tuple[int, int]


class Predictor:
    """Segments one image after another.

    Args:
        cfg: config of the model; ``MODEL.WEIGHTS`` is loaded, ``INPUT.MIN_SIZE_TEST`` and
            ``INPUT.MAX_SIZE_TEST`` are the sizes to which images are scaled.

    Attributes:
        metadata: names and colours of the classes, those of the first test dataset; empty where
            the config has no dataset.

    Raises:
        UserError: the model is not MaskFormer, or its weights are missing, damaged, or of another
            model.
    """

    def __init__(self, cfg: CfgNode):
        self.model = build_model(cfg).eval()
        if not hasattr(self.model, "forward_with_tokens"):
            raise UserError(
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} is not shown here, only "
                "MaskFormer is; take Detectron2's DefaultPredictor and Visualizer."
            )
        Checkpointer(self.model).load(cfg.MODEL.WEIGHTS)
        datasets = (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)
        self.metadata = MetadataCatalog.get(datasets[0]) if datasets else Metadata()
        self._min_size, self._max_size = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        self._channels_reversed = cfg.INPUT.FORMAT == "BGR"

    def __call__(self, image: np.ndarray) -> Prediction:
        """Segment an image.

        Args:
            image: ``(H, W, 3)`` uint8, RGB, at least 1x1.
        """
        size = image.shape[:2]
        input_size = self._input_size(size)
        scaled = ResizeTransform(*size, *input_size).apply_image(image)
        if self._channels_reversed:
            scaled = scaled[:, :, ::-1]
        height, width = result_size(size)
        request = {
            "image": torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1))),
            "height": height,
            "width": width,
        }
        results, tokens = self.model.forward_with_tokens([request])
        positions = {level: x.pos[0].long().cpu().numpy() for level, x in tokens.items()}
        return Prediction(results[0], positions, input_size)

    def _input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) to which the image is scaled, at least one pixel a side."""
        if self._min_size == 0:
            return size
        scaled = ResizeShortestEdge.get_output_shape(*size, self._min_size, self._max_size)
        return max(1, scaled[0]), max(1, scaled[1])


def result_size(size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of the result for an image of ``size``, see :data:`MAX_RESULT_PIXELS`."""
    height, width = size
    scale = min(1.0, (MAX_RESULT_PIXELS / (height * width)) ** 0.5)
    return max(1, round(height * scale)), max(1, round(width * scale))
