"""AutoFocusFormer backbone, and others for comparison."""

from . import builders  # noqa: F401  registers them in Detectron2
from .aff import AutoFocusFormer

__all__ = ["AutoFocusFormer"]
