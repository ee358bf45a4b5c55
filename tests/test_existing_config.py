"""use_aff_backbone turns configs of Detectron2 into what configs/detectron2 holds."""

from pathlib import Path

import detectron2
import pytest
import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg
from detectron2.modeling import build_model

import aff_seg
from aff_seg.errors import UserError
from aff_seg.setup_cfg import load_cfg

CONFIGS = Path(__file__).parents[1] / "configs"
ZOO = Path(detectron2.__file__).parent / "model_zoo" / "configs"
PAIRS = {
    "mask_rcnn_aff_tiny_fpn_3x": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x",
    "cascade_mask_rcnn_aff_tiny_fpn_3x": "Misc/cascade_mask_rcnn_R_50_FPN_3x",
    "retinanet_aff_tiny_fpn_3x": "COCO-Detection/retinanet_R_50_FPN_3x",
    "panoptic_fpn_aff_tiny_3x": "COCO-PanopticSegmentation/panoptic_fpn_R_50_3x",
    "semantic_aff_tiny_fpn_1x": "Misc/semantic_R_50_FPN_1x",
}
MASK_RCNN = PAIRS["mask_rcnn_aff_tiny_fpn_3x"]
RCNN = "GeneralizedRCNN"
SMALL = {"EMBED_DIM": [8, 8, 16, 16], "DEPTHS": [1, 1, 1, 1], "NUM_HEADS": [1, 1, 2, 2]}


def zoo(name):
    cfg = get_cfg()
    cfg.merge_from_file(str(ZOO / f"{name}.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    return cfg


@pytest.mark.parametrize("ours", PAIRS)
def test_a_config_becomes_the_one_of_ours(ours):
    cfg = zoo(PAIRS[ours])
    assert aff_seg.use_aff_backbone(cfg, "tiny") is None
    assert cfg == load_cfg(str(CONFIGS / "detectron2" / f"{ours}.yaml"), ["MODEL.DEVICE", "cpu"])


def test_there_are_no_others():
    assert {path.stem for path in CONFIGS.glob("detectron2/[a-z]*.yaml")} == set(PAIRS)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("models/aff_*.yaml")), ids=lambda p: p.stem)
def test_every_variant_has_the_sizes_of_its_file(path):
    cfg = zoo(MASK_RCNN)
    aff_seg.use_aff_backbone(cfg, path.stem.removeprefix("aff_"))
    expected = get_cfg()
    aff_seg.add_aff_config(expected)
    expected.merge_from_file(str(path))
    assert cfg.MODEL.AFF == expected.MODEL.AFF
    # Queries and detections of the point-cloud head are not for others.
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 100


def test_what_the_user_set_stays():
    cfg = zoo(MASK_RCNN)
    aff_seg.add_aff_config(cfg)
    mine = ["SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 77, "MODEL.AFF.ALPHA", 8.0]
    cfg.merge_from_list([*mine, "DATASETS.TRAIN", ("mine",), "MODEL.ROI_HEADS.NUM_CLASSES", 3])
    before = cfg.clone()
    aff_seg.use_aff_backbone(cfg, "mini")
    assert cfg.SOLVER.BASE_LR == pytest.approx(1e-4 / 4)
    once = cfg.clone()
    aff_seg.use_aff_backbone(cfg, "mini")
    assert cfg == once
    assert cfg.MODEL.AFF.ALPHA == 8.0
    assert cfg.MODEL.ROI_HEADS == before.MODEL.ROI_HEADS
    assert (cfg.DATASETS, cfg.TEST) == (before.DATASETS, before.TEST)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER) == (4, 77)


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x", ["res5"]),
        ("COCO-Detection/rpn_R_50_C4_1x", ["res4"]),
    ],
)
def test_a_config_without_fpn(name, levels):
    cfg = zoo(name)
    aff_seg.use_aff_backbone(cfg, "mini")
    assert cfg.MODEL.BACKBONE.NAME == "build_aff_backbone"
    assert cfg.MODEL.AFF.OUT_FEATURES == levels
    model = build_model(cfg).eval()
    with torch.no_grad():
        assert model([{"image": torch.rand(3, 64, 96) * 255}])


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        (
            "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x",
            [],
            "MODEL.ROI_HEADS.NAME is 'Res5ROIHeads' (a C4 config)",
        ),
        (
            MASK_RCNN,
            ["MODEL.BACKBONE.NAME", "build_mobilenet"],
            "MODEL.BACKBONE.NAME is 'build_mobilenet', which AFF cannot take the place of",
        ),
        (
            MASK_RCNN,
            ["MODEL.FPN.IN_FEATURES", ["stem", "res2"]],
            "MODEL.FPN.IN_FEATURES has stem, but AFF has res2, res3, res4, res5 alone.",
        ),
        (MASK_RCNN, ["MODEL.META_ARCHITECTURE", "MaskFormer"], "takes AFF's tokens, not feature"),
    ],
)
def test_what_cannot_take_aff_is_told(name, changes, sentence):
    cfg = zoo(name)
    cfg.merge_from_list(changes)
    before = cfg.clone()
    with pytest.raises(UserError) as caught:
        aff_seg.use_aff_backbone(cfg, "tiny")
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert cfg == before


ZOO_NAMES = sorted(str(path.relative_to(ZOO))[:-5] for path in ZOO.glob("[A-Z]*/*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO_NAMES)
def test_every_config_of_the_zoo_takes_aff_or_says_why_not(name):
    cfg = zoo(name)
    if cfg.MODEL.ROI_HEADS.NAME == "Res5ROIHeads" and cfg.MODEL.META_ARCHITECTURE == RCNN:
        with pytest.raises(UserError, match="a C4 config"):
            aff_seg.use_aff_backbone(cfg, "mini")
        return
    aff_seg.use_aff_backbone(cfg, "mini")
    cfg.MODEL.AFF.merge_from_other_cfg(CfgNode(SMALL))
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    model = build_model(cfg).eval()
    # Fast R-CNN wants proposals, of which there are none.
    if not cfg.MODEL.LOAD_PROPOSALS:
        with torch.no_grad():
            assert len(model([{"image": torch.rand(3, 70, 97) * 255}])) == 1


def test_wrong_arguments_are_told():
    cfg = zoo(MASK_RCNN)
    with pytest.raises(UserError, match="There is no AFF 'huge'; there are base, mini, mini_1_5th"):
        aff_seg.use_aff_backbone(cfg, "huge")
    cfg.freeze()
    with pytest.raises(UserError, match="frozen; defrost it before"):
        aff_seg.use_aff_backbone(cfg, "tiny")
    lazy = LazyConfig.load(str(ZOO / "COCO-InstanceSegmentation" / "mask_rcnn_R_50_FPN_1x.py"))
    with pytest.raises(UserError, match="not a DictConfig; in a lazy config, build"):
        aff_seg.use_aff_backbone(lazy, "tiny")
