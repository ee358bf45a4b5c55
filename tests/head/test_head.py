"""The head on its own."""

import pytest
import torch
from detectron2.layers import ShapeSpec

from aff_seg.head import MSDeformAttnPixelDecoder, MultiScaleMaskedTransformerDecoder
from aff_seg.head.mask_decoder import TRANSFORMER_DECODER_REGISTRY, QueryAttention
from aff_seg.head.pixel_decoder import DecodedPixels, DeformablePointAttention
from aff_seg.structures import Points

CANVAS = (6, 7)


def _level(count, channels, batch=2):
    pixel = torch.stack([torch.randperm(42)[:count] for _ in range(batch)])
    pos = torch.stack((pixel % 7, pixel // 7), -1).float()
    return Points(torch.randn(batch, count, channels), pos, CANVAS)


def _features():
    return {
        "res2": _level(42, 8),
        "res3": _level(10, 8),
        "res4": _level(3, 8),
        "res5": _level(1, 8),
    }


def _pixel_decoder():
    shape = {f"res{i}": ShapeSpec(channels=8, stride=2**i) for i in range(2, 6)}
    return MSDeformAttnPixelDecoder(
        shape, conv_dim=16, mask_dim=12, num_layers=1, num_heads=2, dim_feedforward=32
    )


def _mask_decoder(**kwargs):
    return MultiScaleMaskedTransformerDecoder(
        hidden_dim=16,
        mask_dim=12,
        num_classes=3,
        num_queries=5,
        num_heads=2,
        dim_feedforward=32,
        num_layers=4,
        **kwargs,
    )


def test_pixel_decoder_with_fewer_tokens_than_neighbours():
    pixels = _pixel_decoder()(_features())
    assert pixels.mask_features.shape == (2, 12, *CANVAS)
    assert [level.feat.shape[1] for level in pixels.levels] == [1, 3, 10]
    assert pixels.mask_features.isfinite().all()


def test_mask_features_do_not_depend_on_the_order_of_tokens():
    features, decoder = _features(), _pixel_decoder()
    want = decoder(features).mask_features
    order = torch.randperm(42)
    res2 = features["res2"]
    features["res2"] = Points(res2.feat[:, order], res2.pos[:, order], CANVAS)
    # Ties at the border go by token order, so only the inside must agree.
    got = decoder(features).mask_features
    torch.testing.assert_close(got[..., 1:-1, 1:-1], want[..., 1:-1, 1:-1])


def test_pixel_decoder_runs_in_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert _pixel_decoder()(_features()).mask_features.dtype == torch.float32


def test_pixel_decoder_names_missing_levels():
    with pytest.raises(ValueError, match=r"needs \['res3', 'res4', 'res5'\]"):
        MSDeformAttnPixelDecoder({"res2": ShapeSpec(channels=8, stride=4)})


def test_offsets_start_in_eight_directions_on_whole_pixels():
    attention = DeformablePointAttention(
        16, heads=8, levels=3, points=4, shepard_power=6.0, learn_power=True
    )
    attention.reset_parameters()
    offsets = attention.sampling_offsets.bias.view(8, 3, 4, 2)
    torch.testing.assert_close(offsets, offsets.round(), rtol=0, atol=1e-6)
    assert torch.equal(offsets.round()[1, 0], torch.tensor([[p, p] for p in (1.0, 2, 3, 4)]))
    assert len({tuple(o) for o in offsets[:, 0, 0].round().tolist()}) == 8
    assert attention.shepard_power.item() == 3.0


def _decoded():
    features = torch.randn(2, 12, *CANVAS)
    return DecodedPixels(features, [_level(n, 16) for n in (4, 9, 20)])


def test_early_predictions_only_in_training():
    decoder, pixels = _mask_decoder(), _decoded()
    out = decoder.train()(pixels)
    assert out["pred_logits"].shape == (2, 5, 4)
    assert out["pred_masks"].shape == (2, 5, *CANVAS)
    assert len(out["aux_outputs"]) == 4
    assert "aux_outputs" not in decoder.eval()(pixels)
    assert "aux_outputs" not in _mask_decoder(deep_supervision=False).train()(pixels)


def test_visible_tokens():
    decoder, pixels = _mask_decoder(), _decoded()
    x = torch.randn(2, 5, 16)
    logits = torch.einsum("bqc,bchw->bqhw", decoder.mask_embed(x), pixels.mask_features)
    level = pixels.levels[1]
    at_tokens = logits.flatten(2).gather(2, level.pixel_index[:, None].expand(-1, 5, -1))
    pixel = level.pixel_index[:, None].expand(-1, 12, -1)
    at = pixels.mask_features.flatten(2).gather(2, pixel).transpose(1, 2)
    visible = decoder._visible_tokens(x, at)
    blind = (at_tokens < 0).all(-1)
    assert torch.equal(visible, (at_tokens >= 0) | blind[..., None])

    # A query that would see nothing sees everything.
    assert decoder._visible_tokens(x, torch.zeros_like(at)).all()
    one_sided = -decoder.mask_embed(x)[:, :1].expand(-1, 9, -1)
    assert decoder._visible_tokens(x, one_sided)[:, 0].all()


def test_attention_of_queries_is_that_of_torch():
    ours = QueryAttention(16, 4)
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    torch.nn.init.normal_(ours.in_proj_bias)
    theirs.load_state_dict(ours.state_dict())
    query, key, value = torch.randn(2, 5, 16), torch.randn(2, 9, 16), torch.randn(2, 9, 16)
    visible = torch.rand(2, 5, 9) > 0.4
    visible[..., 0] = True
    for mask in (None, visible):
        hidden = None if mask is None else ~mask.repeat_interleave(4, dim=0)
        want, _ = theirs(query, key, value, attn_mask=hidden)
        torch.testing.assert_close(ours(query, key, value, mask), want)


def test_decoder_is_registered():
    assert "MultiScaleMaskedTransformerDecoder" in TRANSFORMER_DECODER_REGISTRY
