"""Sizes and names of the published models."""

import re

import pytest
from detectron2.modeling import build_backbone, build_model
from published_shapes import segmentation_shapes

BACKBONES = {
    "mini": 6_370_283,
    "mini_1_5th": 6_370_283,
    "tiny": 26_508_263,
    "tiny_1_5th": 26_508_263,
    "small": 41_845_305,
    "small_1_5th": 41_845_305,
    "base": 74_317_867,
}
MODELS = {
    "ade20k/semantic/aff_mini": 25_800_296,
    "ade20k/semantic/aff_tiny": 45_979_236,
    "ade20k/semantic/aff_small": 61_439_158,
    "cityscapes/panoptic/aff_base": 94_077_733,
}


def _count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("variant", BACKBONES)
def test_backbone_size(variant, load_config):
    cfg = load_config(f"cityscapes/panoptic/aff_{variant}")
    assert _count(build_backbone(cfg)) == BACKBONES[variant]


@pytest.mark.parametrize("config", MODELS)
def test_model_size(config, load_config):
    assert _count(build_model(load_config(config))) == MODELS[config]


@pytest.mark.parametrize(
    ("config", "variant", "classes", "queries"),
    [
        ("cityscapes/panoptic/aff_small", "small", 19, 100),
        ("ade20k/semantic/aff_mini", "mini", 150, 100),
        ("ade20k/instance/aff_tiny", "tiny", 100, 100),
        ("coco/panoptic/aff_mini", "mini", 133, 100),
        ("cityscapes/instance/aff_base", "base", 8, 250),
    ],
)
def test_state_dict_has_the_published_names_and_shapes(
    config, variant, classes, queries, load_config
):
    learned = not config.startswith("coco")
    want = segmentation_shapes(variant, classes, queries=queries, learned_power=learned)
    state = build_model(load_config(config)).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == want


def test_absent_entries(load_config):
    fixed_power = build_model(load_config("coco/instance/aff_mini")).state_dict()
    assert not [name for name in fixed_power if re.search("shepard_power|gamma", name)]
