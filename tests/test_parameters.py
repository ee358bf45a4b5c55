"""Sizes and names of the published models."""

import re

import pytest
from detectron2.modeling import build_backbone, build_model

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


def _linear(name, rows, columns):
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name, channels):
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def _block(p, d, hidden, heads):
    shapes = {**_norm(f"{p}.norm1", d), **_norm(f"{p}.norm2", d)}
    shapes |= _linear(f"{p}.attn.q", d, d) | _linear(f"{p}.attn.kv", 2 * d, d)
    shapes |= _linear(f"{p}.attn.proj", d, d) | _linear(f"{p}.attn.pos_embed", heads, 5)
    shapes |= {f"{p}.attn.blank_k": (d,), f"{p}.attn.blank_v": (d,)}
    shapes |= _linear(f"{p}.mlp.fc1", hidden, d) | _linear(f"{p}.mlp.fc2", d, hidden)
    return shapes | {f"{p}.gamma1": (d,), f"{p}.gamma2": (d,)}


def _point_conv(p, channels, out):
    shapes = _linear(f"{p}.weight_net.0", 4, 5) | _norm(f"{p}.weight_net.1", 4)
    return shapes | _norm(f"{p}.norm", 4 * channels) | _linear(f"{p}.linear", out, 4 * channels)


def _backbone_shapes(dims, depths, heads, ratio):
    p = "backbone.patch_embed"
    shapes = {f"{p}.proj1.weight": (dims[0] // 2, 3, 3, 3), f"{p}.proj1.bias": (dims[0] // 2,)}
    shapes |= _norm(f"{p}.bn", dims[0] // 2) | _norm(f"{p}.norm", dims[0])
    shapes |= {f"{p}.bn.running_{s}": (dims[0] // 2,) for s in ("mean", "var")}
    shapes |= {f"{p}.bn.num_batches_tracked": ()}
    shapes |= {f"{p}.proj2.weight": (dims[0], dims[0] // 2, 3, 3), f"{p}.proj2.bias": (dims[0],)}
    for i, d in enumerate(dims):
        shapes |= _norm(f"backbone.norm{i}", d)
        for j in range(depths[i]):
            shapes |= _block(f"backbone.layers.{i}.blocks.{j}", d, ratio * d, heads[i])
        if i < 3:
            shapes |= _point_conv(f"backbone.layers.{i}.downsample", d, dims[i + 1])
            shapes |= _linear(f"backbone.layers.{i}.prob_net", 1, d)
    return shapes


def _pixel_decoder_shapes(dims):
    p = "sem_seg_head.pixel_decoder"
    shapes = {f"{p}.transformer.level_embed": (3, 256)}
    for i, d in enumerate((dims[3], dims[2], dims[1])):
        shapes |= _linear(f"{p}.input_proj.{i}.0", 256, d) | _norm(f"{p}.input_proj.{i}.1", 256)
    for i in range(6):
        layer = f"{p}.transformer.encoder.layers.{i}"
        attention = f"{layer}.self_attn"
        shapes |= _linear(f"{attention}.sampling_offsets", 192, 256)
        shapes |= _linear(f"{attention}.attention_weights", 96, 256)
        shapes |= _linear(f"{attention}.value_proj", 256, 256)
        shapes |= _linear(f"{attention}.output_proj", 256, 256)
        shapes |= {f"{attention}.shepard_power": (1,)}
        shapes |= _norm(f"{layer}.norm1", 256) | _norm(f"{layer}.norm2", 256)
        shapes |= _linear(f"{layer}.linear1", 1024, 256) | _linear(f"{layer}.linear2", 256, 1024)
    shapes |= _linear(f"{p}.mask_features", 256, 256)
    shapes |= _linear(f"{p}.adapter_1.0", 256, dims[0]) | _norm(f"{p}.adapter_1.1", 256)
    return shapes | _point_conv(f"{p}.layer_1.0", 256, 256) | _norm(f"{p}.layer_1.1", 256)


def _predictor_shapes(queries, classes):
    p = "sem_seg_head.predictor"
    shapes = {}
    for k in range(9):
        for layer in (
            f"{p}.transformer_self_attention_layers.{k}.self_attn",
            f"{p}.transformer_cross_attention_layers.{k}.multihead_attn",
        ):
            shapes |= {f"{layer}.in_proj_weight": (768, 256), f"{layer}.in_proj_bias": (768,)}
            shapes |= _linear(f"{layer}.out_proj", 256, 256)
            shapes |= _norm(f"{layer.rpartition('.')[0]}.norm", 256)
        ffn = f"{p}.transformer_ffn_layers.{k}"
        shapes |= _linear(f"{ffn}.linear1", 2048, 256) | _linear(f"{ffn}.linear2", 256, 2048)
        shapes |= _norm(f"{ffn}.norm", 256)
    shapes |= _norm(f"{p}.decoder_norm", 256)
    shapes |= {f"{p}.query_feat.weight": (queries, 256), f"{p}.query_embed.weight": (queries, 256)}
    shapes |= {f"{p}.level_embed.weight": (3, 256)} | _linear(f"{p}.class_embed", classes + 1, 256)
    for i in range(3):
        shapes |= _linear(f"{p}.mask_embed.layers.{i}", 256, 256)
    return shapes | {"criterion.empty_weight": (classes + 1,)}


def test_state_dict_has_the_published_names_and_shapes(load_config):
    dims, depths, heads = (96, 192, 384, 768), (3, 4, 18, 2), (3, 6, 12, 24)
    want = _backbone_shapes(dims, depths, heads, 3)
    want |= _pixel_decoder_shapes(dims) | _predictor_shapes(100, 19)
    state = build_model(load_config("cityscapes/panoptic/aff_small")).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == want


def test_absent_entries(load_config):
    fixed_power = build_model(load_config("coco/instance/aff_mini")).state_dict()
    assert not [name for name in fixed_power if re.search("shepard_power|gamma", name)]
