"""AutoFocusFormer backbone."""

from .aff import AutoFocusFormer

__all__ = ["AutoFocusFormer"]
