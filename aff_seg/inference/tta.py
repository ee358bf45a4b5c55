"""Test-time augmentation of semantic results."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data.transforms import ResizeShortestEdge, ResizeTransform
from torch import Tensor, nn


class SemanticTTA(nn.Module):
    """Averages the semantic scores of an image over several sizes of it and their mirror images.

    Views pass one by one and are added up as they come, so that there are never more than two
    maps of scores.

    Args:
        model: has ``semantic_scores``, as :class:`aff_seg.meta_arch.MaskFormer`.
        min_sizes: lengths in pixels of the short edge.
        max_size: greatest length in pixels of the long edge.
        flip: whether mirror images count, too.
    """

    @configurable
    def __init__(self, model: nn.Module, *, min_sizes: Sequence[int], max_size: int, flip: bool):
        super().__init__()
        if not min_sizes:
            raise ValueError("min_sizes must hold at least one size")
        self.model = model
        self.min_sizes, self.max_size, self.flip = tuple(min_sizes), max_size, flip
        self.train(model.training)

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> dict:
        aug = cfg.TEST.AUG
        return {
            "model": model,
            "min_sizes": aug.MIN_SIZES,
            "max_size": aug.MAX_SIZE,
            "flip": aug.FLIP,
        }

    @property
    def views(self) -> int:
        """Views of an image."""
        return len(self.min_sizes) * (1 + self.flip)

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """Segment a batch.

        Args:
            batched_inputs: a dict per image: ``image`` uint8 (3, h, w), at its full size;
                optionally ``height`` and ``width`` of the wanted result.

        Returns:
            a dict per image with ``sem_seg`` (K, height, width).
        """
        return [{"sem_seg": self._average(given)} for given in batched_inputs]

    def _average(self, given: dict) -> Tensor:
        """Scores ``(K, height, width)`` of one image."""
        image = given["image"]
        request = {"height": image.shape[1], "width": image.shape[2]}
        request |= {name: given[name] for name in request if name in given}
        total = None
        for view, mirrored in self._views(image):
            total = self._add(total, {"image": view, **request}, mirrored)
        return total.div_(self.views)

    def _views(self, image: Tensor) -> Iterator[tuple[Tensor, bool]]:
        """The image at each size, scaled as by the mapper for evaluation, and whether mirrored."""
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        size = pixels.shape[:2]
        for min_size in self.min_sizes:
            scaled = ResizeShortestEdge.get_output_shape(*size, min_size, self.max_size)
            scaled = [max(1, side) for side in scaled]
            view = ResizeTransform(*size, *scaled).apply_image(pixels)
            view = torch.from_numpy(np.ascontiguousarray(view.transpose(2, 0, 1)))
            yield view, False
            if self.flip:
                yield view.flip(-1), True

    def _add(self, total: Tensor | None, view: dict, mirrored: bool) -> Tensor:
        """Add the scores of a view in place; nothing but the sum is left behind."""
        (scores,) = self.model.semantic_scores([view])
        if total is None:
            return scores
        for of_class, there in zip(total, scores, strict=True):
            of_class += there.flip(-1) if mirrored else there
        return total
