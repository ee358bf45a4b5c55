"""AFF in the place of the backbone of an existing config of Detectron2."""

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from aff_seg.backbone.aff import LEVELS
from aff_seg.config import add_aff_config
from aff_seg.config_files import config_folder
from aff_seg.errors import UserError

# Backbones of Detectron2 and what takes their place.
COUNTERPARTS = {
    "build_resnet_backbone": "build_aff_backbone",
    "build_resnet_fpn_backbone": "build_aff_fpn_backbone",
    "build_retinanet_resnet_fpn_backbone": "build_aff_retinanet_fpn_backbone",
}
# Architectures with MODEL.ROI_HEADS, whose Res5ROIHeads hold the last stage of a ResNet.
_WITH_ROI_HEADS = ("GeneralizedRCNN", "PanopticFPN")


def use_aff_backbone(cfg: CfgNode, variant: str) -> None:
    """Give a config of Detectron2 an AFF as its backbone, in place.

    What changes is what ``configs/detectron2`` changes: the backbone, ``MODEL.WEIGHTS`` (now
    empty), pixel statistics and RGB, and the optimizer: AdamW with a learning rate of 1e-4 for 16
    images, in proportion to ``SOLVER.IMS_PER_BATCH``. ``train_net.py`` and
    ``aff_seg.engine.trainer.Trainer`` follow ``SOLVER.OPTIMIZER``; Detectron2's ``DefaultTrainer``
    does with ``build_optimizer = Trainer.build_optimizer`` in a subclass. Datasets, schedule, heads
    and anchors stay. ``MODEL.BACKBONE.FREEZE_AT`` and ``MODEL.RESNETS`` count no more. The keys of
    :func:`aff_seg.add_aff_config` are added where the config lacks them.

    Args:
        cfg: with a ResNet as backbone, with FPN, RetinaNet's FPN or none; or already with an AFF.
        variant: mini, mini_1_5th, tiny, tiny_1_5th, small, small_1_5th or base.

    Raises:
        UserError: no such variant, or an architecture that cannot take AFF.
    """
    if not isinstance(cfg, CfgNode):
        raise UserError(
            f"use_aff_backbone changes configs that detectron2.config.get_cfg() makes, not a "
            f"{type(cfg).__name__}; in a lazy config, build AutoFocusFormerGrid of "
            "aff_seg.backbone.builders, as docs/mask_rcnn.md shows."
        )
    if cfg.is_frozen():
        raise UserError("use_aff_backbone changes the config, which is frozen; defrost it before.")
    name = _counterpart(cfg)
    sizes = _sizes(variant)
    if "AFF" not in cfg.MODEL:
        add_aff_config(cfg)
    batch = cfg.SOLVER.IMS_PER_BATCH
    common = _read(config_folder() / "detectron2" / "Base-AFF-Detectron2.yaml")
    cfg.merge_from_other_cfg(CfgNode(common))
    cfg.SOLVER.BASE_LR *= batch / cfg.SOLVER.IMS_PER_BATCH
    cfg.SOLVER.IMS_PER_BATCH = batch
    cfg.MODEL.AFF.merge_from_other_cfg(CfgNode(sizes))
    if cfg.MODEL.BACKBONE.NAME == "build_resnet_backbone":
        cfg.MODEL.AFF.OUT_FEATURES = list(cfg.MODEL.RESNETS.OUT_FEATURES)
    cfg.MODEL.BACKBONE.NAME = name


def _counterpart(cfg: CfgNode) -> str:
    """The builder that takes the place of the config's."""
    model = cfg.MODEL
    architecture, name = model.META_ARCHITECTURE, model.BACKBONE.NAME
    if architecture == "MaskFormer":
        raise UserError(
            "MODEL.META_ARCHITECTURE MaskFormer takes AFF's tokens, not feature maps: build the "
            "config on configs/<dataset>/<task>/aff_<variant>.yaml instead."
        )
    if name in COUNTERPARTS.values():
        return name
    if name not in COUNTERPARTS:
        raise UserError(
            f"MODEL.BACKBONE.NAME is {name!r}, which AFF cannot take the place of; it can of "
            f"{', '.join(COUNTERPARTS)}."
        )
    if architecture in _WITH_ROI_HEADS and model.ROI_HEADS.NAME == "Res5ROIHeads":
        raise UserError(
            "MODEL.ROI_HEADS.NAME is 'Res5ROIHeads' (a C4 config), which holds the last stage of a "
            "ResNet itself, so AFF cannot take its place; start from the FPN config."
        )
    with_fpn = name != "build_resnet_backbone"
    key = "FPN.IN_FEATURES" if with_fpn else "RESNETS.OUT_FEATURES"
    levels = (model.FPN if with_fpn else model.RESNETS)[key.split(".")[1]]
    absent = [level for level in levels if level not in LEVELS]
    if absent:
        raise UserError(f"MODEL.{key} has {absent[0]}, but AFF has {', '.join(LEVELS)} alone.")
    return COUNTERPARTS[name]


def _sizes(variant: str) -> dict[str, Any]:
    """What a variant sets under ``MODEL.AFF``."""
    folder = config_folder() / "models"
    files = {path.stem.removeprefix("aff_"): path for path in sorted(folder.glob("aff_*.yaml"))}
    if variant not in files:
        raise UserError(f"There is no AFF {variant!r}; there are {', '.join(files)}.")
    return _read(files[variant])["MODEL"]["AFF"]


def _read(path: Path) -> dict[str, Any]:
    return CfgNode.load_yaml_with_base(str(path))
