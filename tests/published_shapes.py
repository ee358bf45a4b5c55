"""Names and shapes of the published files, by formula, and weights made of them."""

import torch

# Channels, depths, heads, ratio of the MLPs, layer scale.
SIZES = {
    "mini": ((32, 128, 256, 384), (2, 2, 6, 2), (2, 4, 8, 16), 2, False),
    "tiny": ((64, 128, 256, 512), (3, 4, 18, 5), (2, 4, 8, 16), 3, False),
    "small": ((96, 192, 384, 768), (3, 4, 18, 2), (3, 6, 12, 24), 3, True),
    "base": ((128, 256, 512, 1024), (3, 4, 18, 2), (4, 8, 16, 32), 3, True),
}


def classification_shapes(variant, classes=1000):
    """Of a file of ImageNet classification."""
    channels = SIZES[variant][0][3]
    shapes = _backbone_shapes("", *SIZES[variant])
    return shapes | _norm("norm", channels) | _linear("head", classes, channels)


def backbone_shapes(variant):
    """Of the backbone of a segmentation file."""
    shapes = _backbone_shapes("backbone.", *SIZES[variant])
    for i, d in enumerate(SIZES[variant][0]):
        shapes |= _norm(f"backbone.norm{i}", d)
    return shapes


def segmentation_shapes(variant, classes, *, queries=100, learned_power=True):
    """Of a segmentation file; the power of interpolation is not learned on COCO."""
    shapes = backbone_shapes(variant) | _pixel_decoder_shapes(SIZES[variant][0])
    if not learned_power:
        shapes = {name: shape for name, shape in shapes.items() if "shepard_power" not in name}
    return shapes | _predictor_shapes(queries, classes)


def weights_of(shapes):
    """Random weights of these shapes."""
    return {
        name: torch.tensor(7) if name.endswith("num_batches_tracked") else torch.randn(shape)
        for name, shape in shapes.items()
    }


def _linear(name, rows, columns):
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name, channels):
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def _block(p, d, hidden, heads, scaled):
    shapes = {**_norm(f"{p}.norm1", d), **_norm(f"{p}.norm2", d)}
    shapes |= _linear(f"{p}.attn.q", d, d) | _linear(f"{p}.attn.kv", 2 * d, d)
    shapes |= _linear(f"{p}.attn.proj", d, d) | _linear(f"{p}.attn.pos_embed", heads, 5)
    shapes |= {f"{p}.attn.blank_k": (d,), f"{p}.attn.blank_v": (d,)}
    shapes |= _linear(f"{p}.mlp.fc1", hidden, d) | _linear(f"{p}.mlp.fc2", d, hidden)
    return shapes | ({f"{p}.gamma1": (d,), f"{p}.gamma2": (d,)} if scaled else {})


def _point_conv(p, channels, out):
    shapes = _linear(f"{p}.weight_net.0", 4, 5) | _norm(f"{p}.weight_net.1", 4)
    return shapes | _norm(f"{p}.norm", 4 * channels) | _linear(f"{p}.linear", out, 4 * channels)


def _backbone_shapes(prefix, dims, depths, heads, ratio, scaled):
    p = f"{prefix}patch_embed"
    shapes = {f"{p}.proj1.weight": (dims[0] // 2, 3, 3, 3), f"{p}.proj1.bias": (dims[0] // 2,)}
    shapes |= _norm(f"{p}.bn", dims[0] // 2) | _norm(f"{p}.norm", dims[0])
    shapes |= {f"{p}.bn.running_{s}": (dims[0] // 2,) for s in ("mean", "var")}
    shapes |= {f"{p}.bn.num_batches_tracked": ()}
    shapes |= {f"{p}.proj2.weight": (dims[0], dims[0] // 2, 3, 3), f"{p}.proj2.bias": (dims[0],)}
    for i, d in enumerate(dims):
        layer = f"{prefix}layers.{i}"
        for j in range(depths[i]):
            shapes |= _block(f"{layer}.blocks.{j}", d, ratio * d, heads[i], scaled)
        if i < 3:
            shapes |= _point_conv(f"{layer}.downsample", d, dims[i + 1])
            shapes |= _linear(f"{layer}.prob_net", 1, d)
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
