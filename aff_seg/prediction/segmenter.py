"""A trained model for pictures of any size and form."""

import numbers
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
from aff_seg.backbone.builders import AutoFocusFormerGrid
from aff_seg.engine.checkpoint import Checkpointer
from aff_seg.errors import UserError
from aff_seg.prediction.images import read_image, rgb_array
from aff_seg.prediction.segmentation import Segmentation, Size, segmentation_of
from aff_seg.prediction.segments import segments_to_json
from aff_seg.prediction.tiles import TileGrid, TileMerger
from aff_seg.setup_cfg import load_cfg
from aff_seg.visualization.overlay import MIN_SCORE, draw_segments
from aff_seg.visualization.token_figure import FIGURES

# A result has at most this many pixels, those of a Cityscapes image: every query has a mask of
# this size in memory. Bigger images get a smaller result.
MAX_RESULT_PIXELS = 1024 * 2048

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

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
        has_tokens: whether the backbone gives tokens, not feature maps: only AutoFocusFormer does.

    Raises:
        UserError: the model is not MaskFormer, its weights are missing, damaged, of another model
            or of its backbone alone, or the device cannot compute in ``dtype``.
    """

    def __init__(self, cfg: CfgNode, *, dtype: torch.dtype = torch.float32):
        self.model = build_model(cfg).eval()
        if not hasattr(self.model, "forward_with_tokens"):
            raise UserError(
                f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} is not shown here, only "
                "MaskFormer is; take Detectron2's DefaultPredictor and Visualizer."
            )
        _check_dtype(dtype, self.model.device)
        Checkpointer(self.model).load(cfg.MODEL.WEIGHTS, whole=True)
        datasets = (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)
        self.metadata = MetadataCatalog.get(datasets[0]) if datasets else Metadata()
        backbone = self.model.backbone
        self._is_aff = isinstance(backbone, AutoFocusFormer)
        self.has_tokens = self._is_aff and not isinstance(backbone, AutoFocusFormerGrid)
        self.confidence = None
        self.batch = 4
        self._dtype = dtype
        self._own_threshold = self.model.object_threshold
        self._own_keep = cfg.MODEL.AFF.DS_RATE
        self._min_size, self._max_size = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
        self._channels_reversed = cfg.INPUT.FORMAT == "BGR"

    @classmethod
    def from_config(
        cls,
        config: str | os.PathLike,
        weights: str | os.PathLike,
        *,
        device: str | torch.device | None = None,
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

        Raises:
            UserError: there is no such config, no GPU where one is asked for, or see the class.
        """
        if not weights:
            raise UserError("weights names no file; give the checkpoint of the model.")
        asked = [] if device is None else ["MODEL.DEVICE", str(device)]
        cfg = load_cfg(config, [*opts, *asked])
        if asked and cfg.MODEL.DEVICE != asked[1]:
            raise UserError(
                f"device is {asked[1]!r}, but no GPU is visible; give 'cpu' or leave it out."
            )
        cfg.MODEL.WEIGHTS = os.fspath(weights)
        return cls(cfg, dtype=dtype)

    @property
    def confidence(self) -> float | None:
        """Least probability of a panoptic segment, least score of an instance and of a pixel.

        These are the probability and scores of their classes. None for the model's own threshold,
        all instances and all pixels.
        """
        return self._confidence

    @confidence.setter
    def confidence(self, least: float | None) -> None:
        if least is not None and not (isinstance(least, numbers.Real) and 0 <= least <= 1):
            raise UserError(f"confidence is {least!r}, but must be from 0 to 1, or None.")
        self._confidence = least

    @property
    def batch(self) -> int:
        """Most images that pass through the model together."""
        return self._batch

    @batch.setter
    def batch(self, most: int) -> None:
        if not isinstance(most, numbers.Integral) or most < 1:
            raise UserError(f"batch is {most!r}, but must be a whole number of at least 1.")
        self._batch = most

    @property
    def keep(self) -> float:
        """Share of the tokens that each downsampling of AFF keeps, above 0 and at most 1.

        It may be set: less than in the training is faster, more can be more accurate. None sets
        the share of the config again.

        Raises:
            UserError: the backbone is not AFF, or the share is impossible.
        """
        return self._aff.ds_rate

    @keep.setter
    def keep(self, share: float | None) -> None:
        self._aff.ds_rate = self._own_keep if share is None else share

    @property
    def _aff(self) -> AutoFocusFormer:
        if not self._is_aff:
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
        if tokens and not self.has_tokens:
            raise UserError(no_tokens("tokens=True", self))
        if overlap is not None and tile is None:
            raise UserError("overlap is that of tiles; give tile, too.")
        if isinstance(image, list | tuple):
            pictures = [
                _pixels(one, f"Image {number} of {len(image)}")
                for number, one in enumerate(image, start=1)
            ]
            if tile is not None:
                return [self._tiled(picture, tile, overlap) for picture in pictures]
            return self._whole(pictures, tokens)
        if tile is not None:
            return self._tiled(_pixels(image), tile, overlap)
        return self._whole([_pixels(image)], tokens)[0]

    def draw(
        self,
        image: Picture,
        segmentation: Segmentation | None = None,
        *,
        kind: str = "overlay",
        blurred: bool = False,
    ) -> np.ndarray:
        """Draw what was found in an image, or where the model looked.

        Args:
            image: as in a call.
            segmentation: of this image, for the other kinds with tokens; by default the image
                is segmented now.
            kind: ``"overlay"``, the segments over the image, see
                :func:`aff_seg.visualization.overlay.draw_segments`; or ``"tokens"``,
                ``"clusters"`` or ``"importance"``, see :mod:`aff_seg.visualization.token_figure`.
            blurred: lay these three over a blurred image.

        Returns:
            ``(H', W', 3)`` uint8, RGB.

        Raises:
            UserError: there is no such kind, the segmentation is of an image of another size, or
                it lacks the tokens that are to be drawn.
        """
        if kind != "overlay" and kind not in FIGURES:
            raise UserError(f"kind is {kind!r}, but must be overlay, {', '.join(FIGURES)}.")
        pixels = _pixels(image)
        if segmentation is None:
            segmentation = self(pixels, tokens=kind != "overlay")
        _check_one(segmentation)
        if segmentation.size != pixels.shape[:2]:
            raise UserError(
                f"The segmentation is of an image of (height, width) {segmentation.size}, but the "
                f"image has {pixels.shape[:2]}; give those that belong together."
            )
        if kind != "overlay":
            return FIGURES[kind](pixels, segmentation, blurred=blurred)
        least = MIN_SCORE if self.confidence is None else self.confidence
        return draw_segments(pixels, segmentation, self.metadata, least=least)

    def to_json(self, segmentation: Segmentation) -> dict[str, Any]:
        """Plain values, see :func:`aff_seg.prediction.segments.segments_to_json`."""
        _check_one(segmentation)
        return segments_to_json(segmentation, self.metadata)

    def _whole(self, pictures: Sequence[np.ndarray], tokens: bool) -> list[Segmentation]:
        results: list[Segmentation] = [None] * len(pictures)
        alike = defaultdict(list)
        for place, picture in enumerate(pictures):
            alike[self._input_size(picture.shape[:2])].append(place)
        for input_size, places in alike.items():
            for first in range(0, len(places), self.batch):
                part = places[first : first + self.batch]
                found = self._together([pictures[place] for place in part], input_size, tokens)
                for place, segmentation in zip(part, found, strict=True):
                    results[place] = segmentation
        return results

    def _together(
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
        grid = TileGrid(picture.shape[:2], tile, overlap)
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


def no_tokens(what: str, segmenter: Segmenter) -> str:
    """Why there are no tokens of a model, for ``what`` is told to need them."""
    backbone = type(segmenter.model.backbone).__name__
    return (
        f"{what} is for MODEL.BACKBONE.NAME AutoFocusFormer, which gives tokens; the backbone "
        f"{backbone} gives feature maps."
    )


def _check_one(segmentation: Any) -> None:
    if not isinstance(segmentation, Segmentation):
        raise UserError(
            f"The result of one image is wanted, not a {type(segmentation).__name__}; of a list, "
            "give the results one by one."
        )


def result_size(size: Size) -> Size:
    """(H, W) of the result for an image of ``size``, see :data:`MAX_RESULT_PIXELS`."""
    height, width = size
    scale = min(1.0, (MAX_RESULT_PIXELS / (height * width)) ** 0.5)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _check_dtype(dtype: torch.dtype, device: torch.device) -> None:
    if dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}, but must be one of {', '.join(map(str, DTYPES))}.")
    if dtype == torch.float16 and device.type == "cpu":
        raise UserError("dtype torch.float16 is for GPUs; on a CPU take torch.bfloat16.")


def _pixels(image: Picture, name: str = "The image") -> np.ndarray:
    """``(H, W, 3)`` uint8, RGB; ``name`` is what errors call it."""
    if isinstance(image, str | os.PathLike):
        return read_image(os.fspath(image))
    if isinstance(image, Image.Image):
        return rgb_array(image, name)
    if not isinstance(image, np.ndarray):
        raise UserError(
            f"{name} is given as {type(image).__name__}; give an array, a PIL image or a path."
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise UserError(
            f"{name} is an array {image.shape} of {image.dtype}; give (height, width, 3) of uint8 "
            "in the order red, green, blue."
        )
    return image
