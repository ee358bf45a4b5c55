"""Ground truth of one record, in the three forms in which datasets give it.

Each class takes its key out of the record, reads the file named there, and cuts the result
into masks once the augmentations are known.

Shapes: H, W are those of the image file, h, w those after augmentation and padding (at the right
and below), N counts the masks.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import detection_utils as utils
from detectron2.data.transforms import TransformList
from detectron2.structures import polygons_to_bitmask
from detectron2.utils.file_io import PathManager
from PIL import Image
from pycocotools import mask as mask_util

from aff_seg.errors import UserError

Targets = tuple[torch.Tensor, torch.Tensor]
Size = tuple[int, int]


def read_picture(path: str, image_format: str | None) -> np.ndarray:
    """Read an image file as Detectron2 does, uint8 (H, W, 3) or, without format, as stored.

    Raises:
        UserError: the file is missing, is no image, or has pixels of other than 8 bits where a
            format is wanted.
    """
    try:
        with PathManager.open(path, "rb") as file, Image.open(file) as image:
            if image_format is not None:
                _require_8_bits(image)
            upright = utils._apply_exif_orientation(image)
            return utils.convert_PIL_to_numpy(upright, image_format)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; make or fetch the dataset again.") from error
    # What Pillow raises for damaged files of various formats.
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}).") from error


def require_8_bits(path: str) -> None:
    """Raise a ValueError for a grey picture of more than 8 bits, which would turn white."""
    with PathManager.open(path, "rb") as file, Image.open(file) as image:
        _require_8_bits(image)


def _require_8_bits(image: Image.Image) -> None:
    if image.mode[0] in "IF":
        raise ValueError("it has pixels of more than 8 bits; convert it to 8 bits")


def read_label_image(path: str) -> np.ndarray:
    """Read a label image: the class of each pixel, integers (H, W).

    Raises:
        UserError: the file is missing, no image, has several channels or fractions, or values
            that are no classes.
    """
    labels = read_picture(path, None)
    if labels.ndim != 2:
        raise UserError(
            f"{path} has {labels.shape[2]} channels; label images have one, the number of a class."
        )
    if labels.dtype.kind == "f":
        raise UserError(f"{path} holds {labels.dtype} values; labels are whole numbers.")
    for value in (labels.min(), labels.max()):
        if not 0 <= value < 65536:
            raise UserError(f"{path} holds the value {value}; labels are 0 to 65535.")
    return labels.astype(np.uint8) if labels.dtype == bool else labels


def _check_size(path: str, labels: np.ndarray, size: Size) -> None:
    if labels.shape[:2] != size:
        raise UserError(
            f"{path} is {labels.shape[1]} x {labels.shape[0]} pixels, but its image is "
            f"{size[1]} x {size[0]}; they must be of one size."
        )


def _empty_masks(count: int, size: Size, padded: Size) -> tuple[np.ndarray, np.ndarray]:
    """``count`` masks of the size ``padded`` without a pixel, and what is not padding of them."""
    masks = np.zeros((count, *padded), dtype=bool)
    return masks, masks[:, : size[0], : size[1]]


class SemanticLabels:
    """A class for each pixel: one mask for each class that is present."""

    key = "sem_seg_file_name"

    def __init__(self, record: dict, size: Size, ignore_label: int):
        """
        Args:
            record: loses its label file.
            size: (H, W) of the image.
            ignore_label: value of pixels without a class.
        """
        self.file_name = record.pop(self.key)
        self._ignore_label = ignore_label
        self._labels = read_label_image(self.file_name)
        _check_size(self.file_name, self._labels, size)

    def category_map(self) -> np.ndarray:
        """Class of each pixel, (H, W)."""
        return self._labels.astype(np.float32)

    def targets(self, transforms: TransformList, size: Size, padded: Size) -> Targets:
        """Classes int64 (N,) and masks bool (N, h, w).

        Args:
            transforms: to apply.
            size: of the image after them.
            padded: (h, w), the size after padding.
        """
        labels = _move_labels(self._labels, transforms)
        classes = np.flatnonzero(np.bincount(labels.ravel()))
        classes = classes[classes != self._ignore_label]
        masks, inside = _empty_masks(len(classes), size, padded)
        for mask, number in zip(inside, classes.tolist(), strict=True):
            np.equal(labels, number, out=mask)
        return torch.from_numpy(classes), torch.from_numpy(masks)


def _move_labels(labels: np.ndarray, transforms: TransformList) -> np.ndarray:
    """Labels (h, w) after ``transforms``, which move bytes just as they move images."""
    if labels.dtype == np.uint8:
        return transforms.apply_segmentation(labels)
    parts = np.stack([labels & 255, labels >> 8], axis=2).astype(np.uint8)
    low, high = np.moveaxis(transforms.apply_segmentation(parts).astype(np.int64), 2, 0)
    return low + 256 * high


class PanopticLabels:
    """Segment ids in the colours of a PNG, and a list of segments: one mask for each.

    Crowds are left out. A segment that is cropped away keeps an empty mask, as in the
    published recipes.
    """

    key = "pan_seg_file_name"

    def __init__(self, record: dict, size: Size, ignore_label: int):
        """
        Args:
            record: loses its label file and its segments.
            size: (H, W) of the image.
            ignore_label: value of pixels without a class in ``category_map``.
        """
        self.file_name = record.pop(self.key)
        self._segments = record.pop("segments_info")
        self._ignore_label = ignore_label
        self._colours = read_picture(self.file_name, "RGB")
        _check_size(self.file_name, self._colours, size)

    def category_map(self) -> np.ndarray:
        """Class of each pixel, (H, W)."""
        ids = _segment_ids(self._colours)
        categories = np.full(ids.shape, self._ignore_label, dtype=np.float32)
        for segment in self._segments:
            categories[ids == segment["id"]] = segment["category_id"]
        return categories

    def targets(self, transforms: TransformList, size: Size, padded: Size) -> Targets:
        """Classes int64 (N,) and masks bool (N, h, w).

        Args:
            transforms: to apply.
            size: of the image after them.
            padded: (h, w), the size after padding.
        """
        ids = _segment_ids(transforms.apply_segmentation(self._colours))
        kept = [s for s in self._segments if not s.get("iscrowd", 0)]
        classes = torch.tensor([s["category_id"] for s in kept], dtype=torch.int64)
        masks, inside = _empty_masks(len(kept), size, padded)
        listed = ids == 0
        for mask, segment in zip(inside, kept, strict=True):
            np.equal(ids, segment["id"], out=mask)
            listed |= mask
        for segment in self._segments:
            if segment.get("iscrowd", 0):
                listed |= ids == segment["id"]
        if not listed.all():
            raise UserError(
                f"{self.file_name} shows segment id {ids[~listed].min()}, which the dataset's "
                "JSON file does not list; make the panoptic images and their JSON file anew."
            )
        return classes, torch.from_numpy(masks)


def _segment_ids(colours: np.ndarray) -> np.ndarray:
    """Ids R + 256 G + 65536 B of (h, w, 3), int32 (h, w)."""
    parts = np.zeros((*colours.shape[:2], 4), dtype=np.uint8)
    for channel in range(3):
        parts[..., channel] = colours[..., channel]
    return parts.view("<i4")[..., 0]


class InstanceLabels:
    """A list of annotated objects: one mask for each that is no crowd, empty or not."""

    key = "annotations"

    def __init__(self, record: dict, size: Size, ignore_label: int):
        """
        Args:
            record: loses its annotations.
            size: (H, W) of the image.
            ignore_label: not used, for objects have no such pixels.
        """
        self.file_name = record["file_name"]
        self._size = size
        self._objects = [a for a in record.pop(self.key) if not a.get("iscrowd", 0)]

    def targets(self, transforms: TransformList, size: Size, padded: Size) -> Targets:
        """Classes int64 (N,) and masks bool (N, h, w).

        Args:
            transforms: to apply.
            size: of the image after them.
            padded: (h, w), the size after padding.
        """
        classes = torch.tensor([a["category_id"] for a in self._objects], dtype=torch.int64)
        masks, inside = _empty_masks(len(self._objects), size, padded)
        for mask, annotation in zip(inside, self._objects, strict=True):
            mask[:] = self._mask(annotation.get("segmentation"), transforms, size)
        return classes, torch.from_numpy(masks)

    def _mask(
        self,
        segmentation: list | dict | np.ndarray | None,
        transforms: TransformList,
        size: Size,
    ) -> np.ndarray:
        if isinstance(segmentation, list):
            polygons = self._converted(_points, segmentation)
            moved = [transforms.apply_coords(p).reshape(-1) for p in polygons]
            return _by_rows(polygons_to_bitmask(moved, *size).view(np.uint8))
        if isinstance(segmentation, dict):
            mask = self._converted(_decode, segmentation)
        elif isinstance(segmentation, np.ndarray):
            mask = segmentation.astype(np.uint8)
        else:
            raise UserError(
                f"An annotation of {self.file_name} has no mask; give it polygons, RLE or an "
                "array under 'segmentation'."
            )
        if mask.shape != self._size:
            raise UserError(
                f"A mask of {self.file_name} is {mask.shape[1]} x {mask.shape[0]} pixels, but "
                f"the image is {self._size[1]} x {self._size[0]}."
            )
        return transforms.apply_segmentation(mask)

    def _converted(self, convert: Callable[[Any], Any], segmentation: list | dict) -> Any:
        try:
            return convert(segmentation)
        # What numpy and pycocotools raise for numbers that are none.
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"A mask of {self.file_name} is no polygons and no RLE ({error!r}); correct it."
            ) from error


def _points(polygons: list) -> list[np.ndarray]:
    """(points, 2) of each polygon that has three points or more."""
    points = [np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in polygons]
    return [p for p in points if len(p) > 2]


def _decode(rle: dict) -> np.ndarray:
    """uint8 (H, W) of RLE, compressed or not."""
    if isinstance(rle["counts"], list):
        rle = mask_util.frPyObjects(rle, *rle["size"])
    return _by_rows(mask_util.decode(rle))


def _by_rows(mask: np.ndarray) -> np.ndarray:
    """A uint8 mask that pycocotools wrote by columns, in the order of everything else."""
    return cv2.transpose(mask.T)
