"""A trained model for pictures of any size and form."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge, ResizeTransform
from detectron2.modeling import build_model
from PIL import Image

from aff_seg.backbone import AutoFocusFormer
from aff_seg.engine.checkpoint import Checkpointer
from aff_seg.errors import UserError
from aff_seg.prediction.images import read_image, rgb_array
from aff_seg.prediction.segmentation import Segmentation, Size, segmentation_of
from aff_seg.prediction.segments import segments_to_json
from aff_seg.prediction.tiles import TileGrid, TileMerger
from aff_seg.setup_cfg import find_config, load_cfg
from aff_seg.visualization.overlay import MIN_SCORE, draw_segments

# A result has at most this many pixels, those of a Cityscapes image: every query has a mask of
# this size in memory. Bigger images get a smaller result.
MAX_RESULT_PIXELS = 1024 * 2048

Picture: TypeAlias = np.ndarray | Image.Image | str | os.PathLike


class Segmenter:
    """Segments pictures.

    Args:
        cfg: config of the model; ``MODEL.WEIGHTS`` is loaded, ``INPUT.MIN_SIZE_TEST`` and
            ``INPUT.MAX_SIZE_TEST`` are the sizes to which images are scaled.
        dtype: ``torch.float32``, or a shorter type for the parts of the model that may be less
            exact, ``torch.bfloat16`` or, on GPUs, ``torch.float16``.

    Attributes:
        model: in evaluation mode.
        metadata: names and colours of the classes, those of the first test dataset; empty where
            the config has no dataset.
        confidence: least probability of a panoptic segment's class, and least score of an
            instance and of a pixel's class; None for the model's own threshold, all instances and
            all pixels.
        batch: most images that pass through the model together.

    Raises:
        UserError: the model is not MaskFormer, or its weights are missing, damaged, or of another
            model.
    """

    def __init__(self, cfg: CfgNode, *, dtype: torch.dtype = torch.float32):
        self.model = build_model(cfg).eval()
        if not hasattr(self.model, "forward_with_tokens"):
            raise UserError(
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} is not shown here, only "
                "MaskFormer is; take Detectron2's DefaultPredictor and Visualizer."
            )
        Checkpointer(self.model).load(cfg.MODEL.WEIGHTS)
        datasets = (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)
        self.metadata = MetadataCatalog.get(datasets[0]) if datasets else Metadata()
        self.confidence: float | None = None
        self.batch = 4
        self._dtype = dtype
        self._own_threshold = self.model.object_threshold
        self._min_size, self._max_size = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        self._channels_reversed = cfg.INPUT.FORMAT == "BGR"

    @classmethod
    def from_config(
        cls,
        config: str,
        weights: str,
        *,
        device: str | None = None,
        dtype: torch.dtype = torch.float32,
        opts: Sequence[Any] = (),
    ) -> "Segmenter":
        """Build a model and load its weights.

        Args:
            config: one of this project's, such as ``"cityscapes/panoptic/aff_tiny"``, or the
                path of a yaml file.
            weights: checkpoint file.
            device: such as ``"cuda:1"`` or ``"cpu"``; by default a GPU where there is one.
            dtype: see the class.
            opts: further keys and values, one after the other.
        """
        opts = [*opts, "MODEL.WEIGHTS", str(weights)]
        if device is not None:
            opts += ["MODEL.DEVICE", device]
        return cls(load_cfg(find_config(config), opts), dtype=dtype)

    @property
    def has_tokens(self) -> bool:
        """Whether the backbone is AFF, which keeps some tokens and not others."""
        return isinstance(self.model.backbone, AutoFocusFormer)

    @property
    def keep(self) -> float:
        """Share of the tokens that each downsampling of AFF keeps, above 0 and at most 1.

        It may be set: less than in the training is faster, more can be more accurate.

        Raises:
            UserError: the backbone is not AFF, or the share is impossible.
        """
        return self._aff.ds_rate

    @keep.setter
    def keep(self, share: float) -> None:
        self._aff.ds_rate = share

    @property
    def _aff(self) -> AutoFocusFormer:
        if not self.has_tokens:
            name = type(self.model.backbone).__name__
            raise UserError(f"{name} keeps all its cells; only AFF has tokens.")
        return self.model.backbone

    def __call__(
        self,
        image: Picture | Sequence[Picture],
        *,
        tokens: bool = False,
        tile: int | None = None,
        overlap: int | None = None,
    ) -> Segmentation | list[Segmentation]:
        """Segment a picture, or a list of them.

        Args:
            image: ``(H, W, 3)`` uint8 in the order red, green, blue; a PIL image; the path of a
                file; or a list of such, of which those of one size pass together.
            tokens: also tell where the model kept tokens and how important they were.
            tile: side in pixels. The image is not scaled but cut into overlapping squares of this
                side, which the model sees one by one and whose results are merged: for images
                much larger than those of the training, in bounded memory.
            overlap: of tiles, in pixels; by default a quarter of ``tile``.

        Returns:
            one result, or a list in the order of the images.

        Raises:
            UserError: an image cannot be read or has another form, or an argument is wrong.
        """
        if tokens and tile is not None:
            raise UserError("tokens=True is for whole images; leave out tile.")
        if isinstance(image, list | tuple):
            pictures = [_pixels(one) for one in image]
            if tile is not None:
                return [self._tiled(picture, tile, overlap) for picture in pictures]
            return self._whole(pictures, tokens)
        if tile is not None:
            return self._tiled(_pixels(image), tile, overlap)
        return self._whole([_pixels(image)], tokens)[0]

    def draw(self, image: Picture, segmentation: Segmentation | None = None) -> np.ndarray:
        """Lay the segments over the image, see :func:`aff_seg.visualization.overlay.draw_segments`.

        Args:
            image: as in a call.
            segmentation: of this image; by default it is segmented now.
        """
        pixels = _pixels(image)
        least = MIN_SCORE if self.confidence is None else self.confidence
        return draw_segments(pixels, segmentation or self(pixels), self.metadata, least)

    def to_json(self, segmentation: Segmentation) -> dict[str, Any]:
        """Plain values, see :func:`aff_seg.prediction.segments.segments_to_json`."""
        return segments_to_json(segmentation, self.metadata)

    def _whole(self, pictures: Sequence[np.ndarray], tokens: bool) -> list[Segmentation]:
        results: list[Segmentation] = [None] * len(pictures)
        alike = defaultdict(list)
        for place, picture in enumerate(pictures):
            alike[self._input_size(picture.shape[:2])].append(place)
        for input_size, places in alike.items():
            for first in range(0, len(places), self.batch):
                part = places[first : first + self.batch]
                found = self._batch([pictures[place] for place in part], input_size, tokens)
                for place, segmentation in zip(part, found, strict=True):
                    results[place] = segmentation
        return results

    def _batch(
        self, pictures: Sequence[np.ndarray], input_size: Size, tokens: bool
    ) -> Iterator[Segmentation]:
        """Results of pictures that are scaled to one size."""
        requests = []
        for picture in pictures:
            size = picture.shape[:2]
            scaled = ResizeTransform(*size, *input_size).apply_image(picture)
            requests.append(self._request(scaled, result_size(size)))
        outputs, levels = self._run(requests)
        for number, (picture, output) in enumerate(zip(pictures, outputs, strict=True)):
            rest = {"input_size": input_size}
            if tokens:
                rest["tokens"] = {
                    level: points.pos[number].long().cpu().numpy()
                    for level, points in levels.items()
                }
                rest["importance"] = {
                    level: points.importance[number].float().cpu().numpy()
                    for level, points in levels.items()
                    if points.importance is not None
                }
                rest["cluster_size"] = {
                    level: points.cluster_size for level, points in levels.items()
                }
            yield self._result(output, picture.shape[:2], **rest)

    def _tiled(self, picture: np.ndarray, tile: int, overlap: int | None) -> Segmentation:
        grid = TileGrid(picture.shape[:2], tile, tile // 4 if overlap is None else overlap)
        merger = TileMerger(grid)
        for place in grid:
            part = picture[place.rows, place.columns]
            (output,), _ = self._run([self._request(part, part.shape[:2])])
            merger.add(place, self._result(output, part.shape[:2]))
        return merger.result()

    def _request(self, pixels: np.ndarray, result: Size) -> dict[str, Any]:
        if self._channels_reversed:
            pixels = pixels[:, :, ::-1]
        channels = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        return {"image": channels, "height": result[0], "width": result[1]}

    def _run(self, requests: list[dict]) -> tuple[list[dict], dict]:
        own = self.confidence is None
        self.model.object_threshold = self._own_threshold if own else self.confidence
        kind = self.model.device.type
        with torch.autocast(kind, self._dtype, enabled=self._dtype != torch.float32):
            return self.model.forward_with_tokens(requests)

    def _result(self, output: dict[str, Any], size: Size, **rest: Any) -> Segmentation:
        """What is sure enough of the output for an image of ``size``."""
        return segmentation_of(output, size, least=self.confidence or 0.0, **rest)

    def _input_size(self, size: Size) -> Size:
        """(H, W) to which the image is scaled, at least one pixel a side."""
        if self._min_size == 0:
            return size
        scaled = ResizeShortestEdge.get_output_shape(*size, self._min_size, self._max_size)
        return max(1, scaled[0]), max(1, scaled[1])


def result_size(size: Size) -> Size:
    """(H, W) of the result for an image of ``size``, see :data:`MAX_RESULT_PIXELS`."""
    height, width = size
    scale = min(1.0, (MAX_RESULT_PIXELS / (height * width)) ** 0.5)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _pixels(image: Picture) -> np.ndarray:
    """``(H, W, 3)`` uint8, RGB."""
    if isinstance(image, str | os.PathLike):
        return read_image(os.fspath(image))
    if isinstance(image, Image.Image):
        return rgb_array(image)
    if not isinstance(image, np.ndarray):
        raise UserError(
            f"An image is given as {type(image).__name__}; give an array, a PIL image or a path."
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise UserError(
            f"An image is an array {image.shape} of {image.dtype}; give (height, width, 3) of "
            "uint8 in the order red, green, blue."
        )
    return image
