"""Backbones that Detectron2 builds by name: AFF's feature maps, with FPN, and Swin."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from aff_seg import add_aff_config
from aff_seg.backbone import AutoFocusFormer
from aff_seg.backbone.builders import AutoFocusFormerGrid
from aff_seg.backbone.grid import to_grid
from aff_seg.errors import UserError

AFF = ("build_aff_backbone", "build_aff_fpn_backbone", "build_aff_retinanet_fpn_backbone")
TINY = {"EMBED_DIM": [8, 8, 16, 24], "DEPTHS": [1, 1, 1, 1], "NUM_HEADS": [1, 1, 2, 2]}


def make_cfg(name, levels=("res2", "res3", "res4", "res5")):
    cfg = get_cfg()
    add_aff_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = name
    for key, value in TINY.items():
        cfg.MODEL.AFF[key] = value
    cfg.MODEL.FPN.IN_FEATURES = cfg.MODEL.AFF.OUT_FEATURES = list(levels)
    cfg.MODEL.FPN.OUT_CHANNELS = 12
    return cfg


def build(name, *levels):
    torch.manual_seed(0)
    return build_backbone(make_cfg(name, *levels)).eval()


@pytest.mark.parametrize("size", [(64, 96), (33, 70), (1, 1)])
def test_levels_are_grids_of_their_strides(size):
    backbone = build("build_aff_backbone")
    maps = backbone(torch.randn(2, 3, *size))
    assert list(maps) == ["res2", "res3", "res4", "res5"]
    for (level, grid), channels in zip(maps.items(), TINY["EMBED_DIM"], strict=True):
        shape = backbone.output_shape()[level]
        assert shape == ShapeSpec(channels=channels, stride=shape.stride)
        assert grid.shape == (2, channels, *(-(-side // shape.stride) for side in size))
        assert grid.isfinite().all()


def test_parameters_have_the_published_names():
    tokens = AutoFocusFormer(make_cfg("AutoFocusFormer")).state_dict()
    maps = build("build_aff_backbone").state_dict()
    assert list(maps) == list(tokens)
    pyramid = build("build_aff_fpn_backbone").state_dict()
    inside = {name for name in pyramid if name.startswith("bottom_up.")}
    assert inside == {f"bottom_up.{name}" for name in tokens}
    assert {name.split(".")[0] for name in set(pyramid) - inside} == {
        f"fpn_{part}{level}" for part in ("lateral", "output") for level in (2, 3, 4, 5)
    }


def test_weights_of_the_tokens_serve_the_grids():
    cfg = make_cfg("AutoFocusFormer")
    torch.manual_seed(1)
    tokens = AutoFocusFormer(cfg).eval()
    sizes = {key.lower(): value for key, value in TINY.items()}
    # As a lazy config builds it.
    grids = AutoFocusFormerGrid(**sizes, mlp_ratio=cfg.MODEL.AFF.MLP_RATIO).eval()
    grids.load_state_dict(tokens.state_dict())
    images = torch.randn(1, 3, 64, 96)
    points = tokens(images)
    for level, grid in grids(images).items():
        stride = tokens.output_shape()[level].stride
        torch.testing.assert_close(grid, to_grid(points[level], stride))


def test_a_pyramid_has_the_levels_of_detectron2s():
    images = torch.randn(1, 3, 64, 96)
    for name, reference, levels in (
        ("build_aff_fpn_backbone", "build_resnet_fpn_backbone", (2, 3, 4, 5)),
        ("build_aff_retinanet_fpn_backbone", "build_retinanet_resnet_fpn_backbone", (3, 4, 5)),
    ):
        used = [f"res{level}" for level in levels]
        own, cfg = build(name, used), make_cfg(reference, used)
        cfg.MODEL.RESNETS.OUT_FEATURES = used
        theirs = build_backbone(cfg).eval()
        assert own.output_shape() == theirs.output_shape()
        assert own.size_divisibility == theirs.size_divisibility == 32
        shapes = {level: grid.shape for level, grid in own(images).items()}
        assert shapes == {level: grid.shape for level, grid in theirs(images).items()}


@pytest.mark.parametrize("name", AFF)
@pytest.mark.parametrize("first", [2, 3])
def test_everything_learns_the_importance_too(name, first):
    backbone = build(name, [f"res{level}" for level in range(first, 6)]).train()
    maps = backbone(torch.randn(2, 3, 64, 96))
    sum((grid * torch.randn_like(grid)).sum() for grid in maps.values()).backward()
    without = [n for n, p in backbone.named_parameters() if p.grad is None or not p.grad.any()]
    # Half of the channels of a key have no part in a softmax.
    assert [n for n in without if "prob_net" in n or not n.endswith("kv.bias")] == []


def test_stages_that_nobody_wants_are_not_built():
    backbone = build("build_aff_backbone", ["res3", "res4"])
    names = {name.rsplit(".", 1)[0] for name in backbone.state_dict()}
    assert {"norm1", "norm2"} <= names and not {"norm0", "norm3"} & names
    assert len(backbone.layers) == 3 and backbone.layers[2].downsample is None
    assert backbone.size_divisibility == 16


@pytest.mark.parametrize(
    ("name", "levels", "sentence"),
    [
        (AFF[1], ["res2", "res4"], "must be levels that follow one another in res2, res3, res4"),
        (AFF[1], ["res3", "res2"], "must be levels that follow one another in res2, res3, res4"),
        (AFF[1], [], "must be levels that follow one another in res2, res3, res4"),
        (AFF[2], ["res3", "res4"], r"is \['res3', 'res4'\]; add res5, which p6 and p7 are made"),
    ],
)
def test_levels_that_make_no_pyramid_are_told(name, levels, sentence):
    with pytest.raises(UserError, match=sentence):
        build(name, levels)


def test_swin_drops_more_of_its_later_blocks():
    cfg = make_cfg("build_swin_backbone")
    cfg.MODEL.SWIN.EMBED_DIM, cfg.MODEL.SWIN.DEPTHS = 12, [1, 2, 1, 1]
    backbone = build_backbone(cfg)
    rates = [block.drop_path.prob for layer in backbone.layers for block in layer.blocks]
    assert rates == pytest.approx([0, 0.075, 0.15, 0.225, 0.3])
    maps = backbone.eval()(torch.randn(1, 3, 33, 64))
    strides = [shape.stride for shape in backbone.output_shape().values()]
    assert strides == [4, 8, 16, 32]
    assert [tuple(x.shape[1:]) for x in maps.values()] == [
        (12, 9, 16),
        (24, 5, 8),
        (48, 3, 4),
        (96, 2, 2),
    ]
