"""Training mappers: one record of a dataset becomes one input of the model.

A mapper is a geometry, which moves image and labels alike, and a form of ground truth
(``aff_seg.data.labels``); :data:`MAPPERS` has the pairs. Labels are cut into masks once, after the
augmentations are known.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.projects.point_rend.color_augmentation import ColorAugSSDTransform
from detectron2.structures import Instances

from aff_seg.architectures import DETECTRON2, detectron2_architecture
from aff_seg.data.labels import (
    InstanceLabels,
    PanopticLabels,
    SemanticLabels,
    Size,
    Targets,
    read_picture,
    require_8_bits,
)
from aff_seg.data.window import ResizeAndCrop
from aff_seg.errors import UserError

_IMAGE_PADDING = 128


@dataclass(frozen=True)
class Geometry:
    """How image and labels are augmented.

    Attributes:
        augmentations: applied in this order.
        pad_to: side in pixels to which images are padded at the right and below; not padded if
            smaller than 1.
        sees_categories: whether an augmentation asks for the class of each pixel.
    """

    augmentations: list[T.Augmentation | T.Transform]
    pad_to: int
    sees_categories: bool = False


def resize_and_crop(cfg: CfgNode, *, by_category: bool = True) -> Geometry:
    """Resize the short edge, crop, colour, flip, pad.

    Args:
        cfg: keys under ``INPUT``.
        by_category: whether ``CROP.SINGLE_CATEGORY_MAX_AREA`` counts, for which labels must tell
            the class of each pixel.
    """
    inp, crop = cfg.INPUT, cfg.INPUT.CROP
    edges = (inp.MIN_SIZE_TRAIN, inp.MAX_SIZE_TRAIN, inp.MIN_SIZE_TRAIN_SAMPLING)
    resize = _Resize(T.ResizeShortestEdge(*edges))
    sees_categories = by_category and crop.ENABLED and crop.SINGLE_CATEGORY_MAX_AREA < 1
    if sees_categories:
        limit = (crop.SINGLE_CATEGORY_MAX_AREA, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
        steps = [resize, T.RandomCrop_CategoryAreaConstraint(crop.TYPE, crop.SIZE, *limit)]
    elif crop.ENABLED:
        steps = [ResizeAndCrop(resize, T.RandomCrop(crop.TYPE, crop.SIZE))]
    else:
        steps = [resize]
    return Geometry([*steps, *_colour(cfg), *_flip(cfg)], inp.SIZE_DIVISIBILITY, sees_categories)


def large_scale_jitter(cfg: CfgNode) -> Geometry:
    """Flip, scale to a random share of ``INPUT.IMAGE_SIZE``, crop or pad to it."""
    inp, side = cfg.INPUT, cfg.INPUT.IMAGE_SIZE
    scale = _Resize(T.ResizeScale(inp.MIN_SCALE, inp.MAX_SCALE, side, side))
    # The padding is ours, which knows images from masks; Detectron2's depends on its version.
    crop = T.FixedSizeCrop((side, side), pad=False)
    return Geometry([*_flip(cfg), ResizeAndCrop(scale, crop), *_colour(cfg)], side)


def _colour(cfg: CfgNode) -> list[T.Transform]:
    return [ColorAugSSDTransform(img_format=cfg.INPUT.FORMAT)] if cfg.INPUT.COLOR_AUG_SSD else []


def _flip(cfg: CfgNode) -> list[T.Augmentation]:
    direction = cfg.INPUT.RANDOM_FLIP
    if direction == "none":
        return []
    vertical = direction == "vertical"
    return [T.RandomFlip(horizontal=not vertical, vertical=vertical)]


class _Resize(T.Augmentation):
    """Another augmentation that resizes, but that leaves no image without a pixel."""

    def __init__(self, resize: T.Augmentation):
        super().__init__()
        self._resize = resize

    def get_transform(self, image: np.ndarray) -> T.Transform:
        new = self._resize.get_transform(image)
        if isinstance(new, T.NoOpTransform):
            return new
        sides = (max(1, new.new_h), max(1, new.new_w))
        return T.ResizeTransform(new.h, new.w, *sides, new.interp)


@dataclass(frozen=True)
class Pipeline:
    """What makes up a mapper.

    Attributes:
        labels: the form of the ground truth.
        geometry: built from a config.
        drop_empty: leave out masks without a pixel, as of objects that are cropped away.
    """

    labels: type[SemanticLabels | PanopticLabels | InstanceLabels]
    geometry: Callable[[CfgNode], Geometry]
    drop_empty: bool = False


MAPPERS = {
    "mask_former_semantic": Pipeline(SemanticLabels, resize_and_crop),
    "mask_former_panoptic": Pipeline(PanopticLabels, resize_and_crop),
    "mask_former_instance": Pipeline(InstanceLabels, partial(resize_and_crop, by_category=False)),
    "coco_instance_lsj": Pipeline(InstanceLabels, large_scale_jitter, drop_empty=True),
    "coco_panoptic_lsj": Pipeline(PanopticLabels, large_scale_jitter),
}


class TrainMapper:
    """Reads, augments and pads the image and the masks of a record.

    Args:
        labels: the form of the ground truth.
        geometry: augmentations and padding.
        drop_empty: leave out masks without a pixel.
        image_format: "RGB" or "BGR", the order of the channels given to the model.
        num_classes: classes of the model; a label beyond them is an error.
        ignore_label: value of a label image for pixels without a class.
    """

    def __init__(
        self,
        *,
        labels: type[SemanticLabels | PanopticLabels | InstanceLabels],
        geometry: Geometry,
        drop_empty: bool,
        image_format: str,
        num_classes: int,
        ignore_label: int,
    ):
        self.labels_type = labels
        self.augmentations = T.AugmentationList(geometry.augmentations)
        self.pad_to = geometry.pad_to
        self.sees_categories = geometry.sees_categories
        self.drop_empty = drop_empty
        self.image_format = image_format
        self.num_classes = num_classes
        self.ignore_label = ignore_label

    def __call__(self, record: dict) -> dict:
        """Turn a record into an input of the model.

        Args:
            record: in Detectron2's dataset format; it is not changed.

        Returns:
            the record without its labels, with ``image`` (uint8 (3, h, w)) and
            ``instances``: ``gt_classes`` int64 (N,), ``gt_masks`` bool (N, h, w), where h, w
            is the size after augmentation and N may be 0.

        Raises:
            UserError: a file is missing, unreadable or of the wrong size, or a label is
                unknown.
        """
        record = dict(record)
        image = self._read_image(record)
        if self.labels_type.key not in record:
            raise UserError(
                f"The record of {record['file_name']} has no {self.labels_type.key}; choose an "
                "INPUT.DATASET_MAPPER_NAME that fits the dataset."
            )
        labels = self.labels_type(record, image.shape[:2], self.ignore_label)
        categories = labels.category_map() if self.sees_categories else None
        aug_input = T.AugInput(image, sem_seg=categories)
        transforms = self.augmentations(aug_input)
        size = aug_input.image.shape[:2]
        padded = tuple(max(side, self.pad_to) for side in size)
        classes, masks = labels.targets(transforms, size, padded)
        self._check_classes(classes, labels.file_name)
        if self.drop_empty:
            classes, masks = _without_empty(classes, masks)
        record["image"] = _to_tensor(aug_input.image, padded)
        record["instances"] = Instances(padded, gt_classes=classes, gt_masks=masks)
        return record

    def _read_image(self, record: dict) -> np.ndarray:
        image = read_picture(record["file_name"], self.image_format)
        try:
            utils.check_image_size(record, image)
        except utils.SizeMismatchError as error:
            raise UserError(str(error)) from error
        return image

    def _check_classes(self, classes: torch.Tensor, file_name: str) -> None:
        beyond = classes[(classes < 0) | (classes >= self.num_classes)]
        if len(beyond):
            raise UserError(
                f"{file_name} holds class {int(beyond[0])}, but the model has "
                f"{self.num_classes} (0 to {self.num_classes - 1}); correct the labels or "
                "MODEL.SEM_SEG_HEAD.NUM_CLASSES."
            )


def _without_empty(classes: torch.Tensor, masks: torch.Tensor) -> Targets:
    # NumPy's stops at the first pixel.
    seen = [bool(mask.any()) for mask in masks.numpy()]
    return (classes, masks) if all(seen) else (classes[seen], masks[seen])


def _to_tensor(image: np.ndarray, padded: Size) -> torch.Tensor:
    """``(h, w, 3)`` as ``(3, *padded)``, filled up at the right and below."""
    height, width = image.shape[:2]
    tensor = torch.empty((3, *padded), dtype=torch.uint8)
    tensor[:, height:] = _IMAGE_PADDING
    tensor[:, :height, width:] = _IMAGE_PADDING
    planes = tensor.numpy()[:, :height, :width]
    planes[:] = image.transpose(2, 0, 1)
    return tensor


class Detectron2Mapper(DatasetMapper):
    """Detectron2's mapper for training its own architectures, which names bad input.

    Args:
        needs: keys that a record must have.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        if cfg.MODEL.LOAD_PROPOSALS:
            raise UserError(
                "MODEL.LOAD_PROPOSALS is True, but files of proposals are not read here; take a "
                "model that makes its own, or Detectron2's DefaultTrainer."
            )
        architecture = detectron2_architecture(cfg)
        if architecture is None:
            raise UserError(
                f"INPUT.DATASET_MAPPER_NAME is {DETECTRON2}, which is not for MaskFormer; it takes "
                f"{', '.join(MAPPERS)}."
            )
        needs = {"annotations": architecture.things, "sem_seg_file_name": architecture.stuff}
        options = super().from_config(cfg, is_train=True)
        return {**options, "needs": [key for key, part in needs.items() if part]}

    @configurable
    def __init__(self, *, needs: list[str], **options: Any):
        super().__init__(**options)
        self.needs = needs

    def __call__(self, record: dict) -> dict:
        """Turn a record into an input of the model.

        Raises:
            UserError: a file cannot be read, or the record does not fit the model.
        """
        for key in self.needs:
            if key not in record:
                raise UserError(
                    f"The record of {record['file_name']} has no {key}, which this "
                    "MODEL.META_ARCHITECTURE is trained on; name another dataset in DATASETS.TRAIN."
                )
        for annotation in record.get("annotations", ()):
            fault = None if annotation.get("iscrowd", 0) else self._fault(annotation)
            if fault:
                raise UserError(f"The record of {record['file_name']} has an object {fault}.")
        try:
            return super().__call__(record)
        except (OSError, SyntaxError, ValueError, utils.SizeMismatchError) as error:
            raise UserError(f"{record['file_name']} cannot be used ({error}).") from error

    def _fault(self, annotation: dict) -> str | None:
        """What Detectron2 would stumble over, and what to do."""
        if "bbox" not in annotation:
            return "without bbox; add it to the annotations"
        if not self.use_instance_mask:
            return None
        if not annotation.get("segmentation"):
            return "without segmentation; add it, or set MODEL.MASK_ON False"
        if self.instance_mask_format == "polygon" and isinstance(annotation["segmentation"], dict):
            return "whose mask is no polygon; set INPUT.MASK_FORMAT bitmask"
        return None


class EvaluationMapper(DatasetMapper):
    """Detectron2's mapper for evaluation, which names a picture that cannot be read."""

    def __call__(self, record: dict) -> dict:
        """Turn a record into an input of the model.

        Raises:
            UserError: the image is missing or damaged, or has pixels of other than 8 bits.
        """
        # Detectron2 would decode the label image too; evaluators read their own ground truth.
        record = {key: value for key, value in record.items() if key != "sem_seg_file_name"}
        try:
            require_8_bits(record["file_name"])
            return super().__call__(record)
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{record['file_name']} cannot be read ({error}).") from error


def build_train_mapper(cfg: CfgNode) -> TrainMapper | Detectron2Mapper:
    """Build the mapper that ``INPUT.DATASET_MAPPER_NAME`` names, of :data:`MAPPERS` or detectron2.

    Raises:
        UserError: there is no mapper of that name.
    """
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if name == DETECTRON2:
        return Detectron2Mapper(cfg)
    if name not in MAPPERS:
        known = ", ".join((*MAPPERS, DETECTRON2))
        raise UserError(f"INPUT.DATASET_MAPPER_NAME is {name!r}; it must be one of {known}.")
    pipeline = MAPPERS[name]
    return TrainMapper(
        labels=pipeline.labels,
        geometry=pipeline.geometry(cfg),
        drop_empty=pipeline.drop_empty,
        image_format=cfg.INPUT.FORMAT,
        num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
    )
