"""Training mappers: one record of a dataset becomes one input of the model.

All resize, crop, recolour, flip and pad alike; they differ in the form of the ground truth
(``aff_seg.data.labels``) and in how they crop.
"""

import copy

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.projects.point_rend.color_augmentation import ColorAugSSDTransform
from detectron2.structures import Instances
from torch.nn import functional as F

from aff_seg.data.labels import InstanceLabels, PanopticLabels, SemanticLabels, read_picture
from aff_seg.errors import UserError

_IMAGE_PADDING = 128


class TrainMapper:
    """The pipeline the mappers share; a subclass names the form of its ground truth."""

    labels_type: type[SemanticLabels | PanopticLabels | InstanceLabels]

    @configurable
    def __init__(
        self,
        *,
        augmentations: list[T.Augmentation | T.Transform],
        image_format: str,
        num_classes: int,
        ignore_label: int,
        pad_to: int,
        crop_sees_categories: bool,
    ):
        """
        Args:
            augmentations: applied in this order to image and labels.
            image_format: "RGB" or "BGR", the order of the channels given to the model.
            num_classes: classes of the model; a label beyond them is an error.
            ignore_label: value of a label image for pixels without a class.
            pad_to: side in pixels to which images are padded at the right and below; not
                padded if smaller than 1.
            crop_sees_categories: whether an augmentation asks for the class of each pixel.
        """
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.pad_to = pad_to
        self.crop_sees_categories = crop_sees_categories

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        inp = cfg.INPUT
        steps = [
            T.ResizeShortestEdge(
                inp.MIN_SIZE_TRAIN, inp.MAX_SIZE_TRAIN, inp.MIN_SIZE_TRAIN_SAMPLING
            )
        ]
        if inp.CROP.ENABLED:
            steps.append(cls._crop(cfg))
        if inp.COLOR_AUG_SSD:
            steps.append(ColorAugSSDTransform(img_format=inp.FORMAT))
        if inp.RANDOM_FLIP != "none":
            vertical = inp.RANDOM_FLIP == "vertical"
            steps.append(T.RandomFlip(horizontal=not vertical, vertical=vertical))
        return {
            "augmentations": steps,
            "image_format": inp.FORMAT,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "ignore_label": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "pad_to": inp.SIZE_DIVISIBILITY,
            "crop_sees_categories": inp.CROP.ENABLED and inp.CROP.SINGLE_CATEGORY_MAX_AREA < 1,
        }

    @classmethod
    def _crop(cls, cfg: CfgNode) -> T.Augmentation:
        crop = cfg.INPUT.CROP
        return T.RandomCrop_CategoryAreaConstraint(
            crop.TYPE,
            crop.SIZE,
            crop.SINGLE_CATEGORY_MAX_AREA,
            cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        )

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
        record = copy.deepcopy(record)
        image = self._read_image(record)
        if self.labels_type.key not in record:
            raise UserError(
                f"The record of {record['file_name']} has no {self.labels_type.key}; choose an "
                "INPUT.DATASET_MAPPER_NAME that fits the dataset."
            )
        labels = self.labels_type(record, image.shape[:2], self.ignore_label)
        categories = labels.category_map() if self.crop_sees_categories else None
        aug_input = T.AugInput(image, sem_seg=categories)
        transforms = self.augmentations(aug_input)
        image = torch.from_numpy(aug_input.image.transpose(2, 0, 1).copy())
        classes, masks = labels.targets(transforms, tuple(image.shape[1:]))
        self._check_classes(classes, labels.file_name)
        record["image"] = self._pad(image, _IMAGE_PADDING)
        masks = self._pad(masks, False)
        record["instances"] = Instances(tuple(masks.shape[1:]), gt_classes=classes, gt_masks=masks)
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

    def _pad(self, images: torch.Tensor, value: int | bool) -> torch.Tensor:
        """Pad (..., h, w) at the right and below to ``pad_to``."""
        below, right = (max(self.pad_to - side, 0) for side in images.shape[-2:])
        return F.pad(images, (0, right, 0, below), value=value)


class SemanticMapper(TrainMapper):
    """For datasets with a label image of classes."""

    labels_type = SemanticLabels


class PanopticMapper(TrainMapper):
    """For datasets in COCO's panoptic form, Cityscapes' among them."""

    labels_type = PanopticLabels


class InstanceMapper(TrainMapper):
    """For datasets in COCO's instance form."""

    labels_type = InstanceLabels

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {**super().from_config(cfg), "crop_sees_categories": False}

    @classmethod
    def _crop(cls, cfg: CfgNode) -> T.Augmentation:
        return T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)


class EvaluationMapper(DatasetMapper):
    """Detectron2's mapper for evaluation, which names a picture that cannot be read."""

    def __call__(self, record: dict) -> dict:
        """Turn a record into an input of the model.

        Raises:
            UserError: the image or its label image is missing or damaged.
        """
        try:
            return super().__call__(record)
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(
                f"{record['file_name']} or its label image cannot be read ({error})."
            ) from error


MAPPERS = {
    "mask_former_semantic": SemanticMapper,
    "mask_former_panoptic": PanopticMapper,
    "mask_former_instance": InstanceMapper,
}


def build_train_mapper(cfg: CfgNode) -> TrainMapper:
    """Build the mapper that ``INPUT.DATASET_MAPPER_NAME`` names.

    Raises:
        UserError: there is no mapper of that name.
    """
    name = cfg.INPUT.DATASET_MAPPER_NAME
    if name not in MAPPERS:
        raise UserError(
            f"INPUT.DATASET_MAPPER_NAME is {name!r}; it must be one of {', '.join(MAPPERS)}."
        )
    return MAPPERS[name](cfg)
