"""Files of weights are told apart, and their names become those of a model, exactly."""

import re

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.model_zoo import get_config_file
from detectron2.modeling import META_ARCH_REGISTRY, build_resnet_backbone
from published_shapes import (
    SIZES,
    backbone_shapes,
    classification_shapes,
    segmentation_shapes,
    weights_of,
)

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


@pytest.mark.parametrize("make", [classification_shapes, segmentation_shapes])
@pytest.mark.parametrize("name", ["mask_rcnn_aff_tiny_fpn_3x", "retinanet_aff_tiny_fpn_3x"])
def test_files_fill_the_backbone_inside_a_pyramid(name, make, load_config):
    cfg = load_config(f"detectron2/{name}")
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    of_head = (150,) if make is segmentation_shapes else ()
    weights = on_meta(make("tiny", *of_head))
    match = compare(model.state_dict(), names_of(model, weights))
    assert match.fits and match.backbone_alone and not match.reshaped
    inside = [key for key in model.state_dict() if key.startswith("backbone.bottom_up.")]
    if make is classification_shapes:
        inside = [key for key in inside if not key.startswith("backbone.bottom_up.norm")]
    assert match.matched == inside
    # The finest level of a RetinaNet has no norm, which files of a segmentation model have.
    norm = [f"backbone.bottom_up.norm0.{kind}" for kind in ("weight", "bias")]
    spare = norm if name.startswith("retinanet") and make is segmentation_shapes else []
    assert match.unexpected == spare


def test_no_head_of_a_segmentation_file_lands_in_that_of_another_model(load_config):
    cfg = load_config("detectron2/panoptic_fpn_aff_tiny_3x")
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get("PanopticFPN")(cfg)
    weights = on_meta(segmentation_shapes("tiny", 133))
    assert any(key.startswith("sem_seg_head.") for key in weights)
    assert any(key.startswith("sem_seg_head.") for key in model.state_dict())
    match = compare(model.state_dict(), names_of(model, weights))
    assert all(key.startswith("backbone.bottom_up.") for key in match.matched)
    assert match.fits and not match.unexpected


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_file_of_a_resnet_fills_it_with_and_without_a_pyramid(prefix, load_config):
    pyramid = get_cfg()
    pyramid.merge_from_file(get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"))
    plain = load_config("coco/instance/r50")
    with torch.device("meta"):
        resnet = build_resnet_backbone(plain, ShapeSpec(channels=3))
        models = [META_ARCH_REGISTRY.get(c.MODEL.META_ARCHITECTURE)(c) for c in (plain, pyramid)]
    weights = {prefix + name: value for name, value in resnet.state_dict().items()}
    weights[f"{prefix}stem.fc.weight"] = torch.empty(1000, 2048, device="meta")
    for model, inside in zip(models, ("backbone.", "backbone.bottom_up."), strict=True):
        match = compare(model.state_dict(), names_of(model, weights))
        assert match.fits and match.backbone_alone and not match.reshaped
        assert set(match.matched) == {inside + name for name in resnet.state_dict()}
        assert match.unexpected == [f"{inside}stem.fc.weight"]


def test_a_published_file_of_swin_fills_it_but_for_its_norms(load_config):
    with torch.device("meta"):
        model = META_ARCH_REGISTRY.get("MaskFormer")(load_config("ade20k/semantic/swin_tiny"))
    state = {n: x for n, x in model.backbone.state_dict().items() if not re.match(r"norm\d", n)}
    rest = {"norm.weight": (768,), "head.weight": (1000, 768), "layers.0.blocks.1.attn_mask": ()}
    match = compare(model.state_dict(), names_of(model, {**state, **on_meta(rest)}))
    assert match.fits and match.backbone_alone and not match.reshaped
    assert match.matched == [f"backbone.{name}" for name in state]
    assert match.unexpected == [f"backbone.{name}" for name in rest]


def test_values_pass_unchanged(models):
    weights = weights_of(classification_shapes("mini"))
    named = names_of(models["mini"], weights)
    assert all(value is weights[name.removeprefix("backbone.")] for name, value in named.items())
