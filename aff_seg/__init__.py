"""AutoFocusFormer segmentation: image segmentation off the grid, for Detectron2."""

import sys

# `python -m aff_seg.doctor` examines installations in which these imports fail.
if "aff_seg.doctor" not in sys.orig_argv:
    # Registers the datasets and the parts of the model in Detectron2.
    from . import backbone, data, head, meta_arch  # noqa: F401
    from .config import add_aff_config
    from .existing_config import use_aff_backbone

__all__ = ["add_aff_config", "use_aff_backbone"]
