"""A dataset of drawn scenes in the official layouts of ADE20K, COCO and Cityscapes."""

from aff_seg.data.shapes.dataset import LAYOUTS, write_dataset

__all__ = ["LAYOUTS", "write_dataset"]
