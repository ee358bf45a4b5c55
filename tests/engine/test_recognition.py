"""Files of weights are told apart, and their names become those of a model, exactly."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN
from published_shapes import (
    SIZES,
    backbone_shapes,
    classification_shapes,
    segmentation_shapes,
    weights_of,
)
from torch import nn

from aff_seg.engine.checkpoint import compare
from aff_seg.engine.recognition import (
    Kind,
    Recognised,
    backbone_alone,
    names_of,
    recognise,
    segmentation_names,
)

HEAD_NORM = "sem_seg_head.pixel_decoder.layer_1.0.norm.weight"


def on_meta(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def models(load_config):
    """The model of every variant, names and shapes only."""
    models = {}
    for variant in SIZES:
        cfg = load_config(f"cityscapes/panoptic/aff_{variant}")
        with torch.device("meta"):
            models[variant] = META_ARCH_REGISTRY.get("MaskFormer")(cfg)
    return models


@pytest.mark.parametrize("variant", SIZES)
def test_published_files_are_recognised(variant):
    found = recognise(on_meta(classification_shapes(variant)))
    assert found == Recognised(Kind.CLASSIFICATION, variant, 1000)
    assert str(found) == f"AFF classification file, AFF-{variant.capitalize()}, 1000 classes"
    for classes, queries in ((150, 100), (19, 250)):
        weights = on_meta(segmentation_shapes(variant, classes, queries=queries))
        assert recognise(weights) == Recognised(Kind.SEGMENTATION, variant, classes, queries)
    found = recognise(on_meta(backbone_shapes(variant)))
    assert found == Recognised(Kind.BACKBONE, variant)


def test_other_files_are_told_apart(load_config, tiny_opts):
    cfg = load_config("quick/shapes_cityscapes_panoptic", *tiny_opts)
    own = META_ARCH_REGISTRY.get("MaskFormer")(cfg).state_dict()
    assert str(recognise(own)) == (
        "AFF segmentation file, sizes of its own, 19 classes, 12 queries"
    )
    numbers = {name: torch.tensor(1.0) for name in own}
    assert str(recognise(numbers)) == "AFF segmentation file, sizes of its own"
    for names in ((), ("stem.conv1.weight", "res2.0.conv1.weight"), ("patch_embed.proj1.weight",)):
        weights = on_meta({name: (3, 3) for name in names})
        assert recognise(weights) == Recognised(Kind.OTHER)
        assert segmentation_names(weights) == weights
        assert backbone_alone(weights) == {}


def test_files_with_another_head_or_backbone_are_told_apart():
    whole = on_meta(segmentation_shapes("tiny", 19))
    rest = {name: w for name, w in whole.items() if not name.startswith("backbone.")}
    found = recognise(rest | on_meta({"backbone.stem.conv1.weight": (3, 3)}))
    assert str(found) == "segmentation file with another backbone, 19 classes, 100 queries"
    bare = on_meta(classification_shapes("tiny"))
    bare = {name: w for name, w in bare.items() if not name.startswith(("norm.", "head."))}
    assert recognise(bare) == Recognised(Kind.BACKBONE, "tiny")
    detector = {f"backbone.bottom_up.{name}": w for name, w in bare.items()}
    assert recognise(detector) == Recognised(Kind.BACKBONE, "tiny")
    detector |= on_meta({"backbone.fpn_lateral2.weight": (3, 3), "roi_heads.weight": (3, 3)})
    assert str(recognise(detector)) == "model of Detectron2 with AFF, AFF-Tiny"
    assert segmentation_names(detector) is detector
    assert backbone_alone(detector) == backbone_alone(bare) == segmentation_names(bare)


@pytest.mark.parametrize("variant", SIZES)
def test_classification_files_fill_the_backbone_but_for_its_norms(variant, models):
    weights = on_meta(classification_shapes(variant))
    for named in (names_of(models[variant], weights), segmentation_names(weights)):
        match = compare(models[variant].state_dict(), named)
        assert match.fits and match.backbone_alone
        assert not match.reshaped and not match.unexpected
        missing = [name for name in match.missing if name.startswith("backbone.")]
        assert missing == [f"backbone.norm{i}.{x}" for i in range(4) for x in ("weight", "bias")]
        assert all(
            named[f"backbone.{n}"] is w for n, w in weights.items() if f"backbone.{n}" in named
        )


def test_the_norm_of_the_classifier_stays_out_of_the_head(models):
    """In Base it has the shape of a norm of the pixel decoder, and its last name."""
    weights = on_meta(classification_shapes("base"))
    state = models["base"].state_dict()
    assert weights["norm.weight"].shape == state[HEAD_NORM].shape
    named = names_of(models["base"], weights)
    assert all(name.startswith("backbone.") for name in named)
    assert not any(value is weights["norm.weight"] for value in named.values())


@pytest.mark.parametrize("make", [classification_shapes, backbone_shapes])
@pytest.mark.parametrize("ours", SIZES)
@pytest.mark.parametrize("theirs", SIZES)
def test_backbones_of_other_variants_do_not_fit(make, ours, theirs, models):
    match = compare(models[ours].state_dict(), names_of(models[ours], on_meta(make(theirs))))
    assert match.fits == (ours == theirs)


def test_whole_files_keep_their_names(models):
    weights = on_meta(segmentation_shapes("tiny", 19))
    assert names_of(models["tiny"], weights) is weights
    match = compare(models["tiny"].state_dict(), weights)
    assert match.complete and not match.backbone_alone


class Body(Backbone):
    """A backbone whose names are found in files without a prefix."""

    def __init__(self):
        super().__init__()
        self.stem, self.res2 = nn.Linear(3, 8), nn.Linear(8, 8)

    def output_shape(self):
        return {"res2": ShapeSpec(channels=8, stride=4)}

    def forward(self, x):
        return {"res2": x}


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = FPN(Body(), ["res2"], 8)
        self.head = nn.Linear(8, 8)


def test_backbones_inside_others_are_found():
    model, body = Detector(), Body()
    bare = {**body.state_dict(), "fc.weight": torch.ones(8, 8)}
    for given in (bare, {f"backbone.{name}": value for name, value in bare.items()}):
        match = compare(model.state_dict(), names_of(model, given))
        assert match.matched == [f"backbone.bottom_up.{name}" for name in body.state_dict()]
        assert match.unexpected == ["backbone.bottom_up.fc.weight"]
        assert match.backbone_alone


def test_values_pass_unchanged(models):
    weights = weights_of(classification_shapes("mini"))
    named = names_of(models["mini"], weights)
    assert all(value is weights[name.removeprefix("backbone.")] for name, value in named.items())
