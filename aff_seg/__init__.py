"""AutoFocusFormer segmentation: image segmentation off the grid, for Detectron2."""

from . import backbone, head, meta_arch  # noqa: F401  registers the parts in Detectron2
from .config import add_aff_config

__all__ = ["add_aff_config"]
