"""FLOPs as fvcore counts them, and memory of tensors that live at once."""

from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.profiler import ProfilerActivity, profile

from aff_seg.analysis import EARLY_MASKS, PRODUCTS, analyze


class Mixed(nn.Module):
    """One of everything that both count."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.GELU()
        )
        self.groups = nn.Conv2d(8, 8, 3, groups=4)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.group_norm = nn.GroupNorm(2, 4)
        self.norm = nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4, elementwise_affine=False))
        self.plain = nn.Sequential(
            nn.BatchNorm2d(4, affine=False), nn.GroupNorm(2, 4, affine=False)
        )
        self.linear = nn.Linear(4, 6)

    def forward(self, image):
        x = self.plain(self.group_norm(self.up(self.groups(self.body(image)))))
        x = F.interpolate(x, scale_factor=2, mode="bilinear")
        x = F.interpolate(x, scale_factor=2)
        rows = self.linear(self.norm(x.flatten(2).transpose(1, 2)))
        grams = torch.einsum("bnc,bnd->bcd", rows, rows)
        return torch.bmm(grams, grams) @ grams[0]


def test_counts_are_those_of_fvcore():
    model, image = Mixed().eval(), torch.randn(2, 3, 33, 20)
    want = FlopCountAnalysis(model, image).by_module()
    found = analyze(model, image)
    assert {name: found.total_flops(name) for name in want} == dict(want)
    assert found.parameters[""] == sum(p.numel() for p in model.parameters())
    assert found.parameters["body"] == 3 * 8 * 9 + 8 + 16


def test_detectron2_models_count_as_by_fvcore(load_config):
    cfg = load_config(
        "ade20k/semantic/aff_mini",
        *("MODEL.META_ARCHITECTURE", "SemanticSegmentor"),
        *("MODEL.BACKBONE.NAME", "build_resnet_backbone"),
        *("MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead", "MODEL.RESNETS.OUT_FEATURES", ["res2"]),
        *("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2"]),
    )
    model = build_model(cfg).backbone.eval()
    image = torch.randn(1, 3, 64, 96)
    assert analyze(model, image).total_flops() == FlopCountAnalysis(model, image).total()


@pytest.mark.parametrize("mask", [None, torch.ones(1, 1, 5, 7, dtype=torch.bool)])
def test_attention_counts_both_of_its_products(mask):
    class Attention(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(*x, attn_mask=mask)

    query, key, value = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    found = analyze(Attention(), (query, key, value))
    assert found.total_flops() == 2 * 3 * 5 * 7 * (8 + 8)


def test_peak_is_of_tensors_that_live_at_once():
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1000))
            self.act = nn.ReLU()

        def forward(self, x):
            x = x + self.weight[:1000].view(10, 100).view(-1)  # 4000 bytes
            x = self.act(x)  # 4000 more
            x = x[:500] * 2  # the first are gone
            x.mul_(2)
            return x

    found = analyze(Steps(), torch.ones(1000))
    assert found.peak[""] == found.peak["act"] == 8000


def test_peak_is_what_the_allocator_gives(load_config, tiny_opts):
    """But for what an operation holds while it runs, each thread for itself."""
    model = build_model(load_config("quick/shapes_cityscapes_panoptic", *tiny_opts)).eval()
    inputs = [{"image": torch.zeros(3, 192, 256)}]
    found = analyze(model, inputs).peak[""]
    cpu = {"activities": [ProfilerActivity.CPU], "profile_memory": True, "acc_events": True}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad(), profile(**cpu) as seen:
            model(inputs)
    finally:
        torch.set_num_threads(threads)
    events = seen.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    assert found == pytest.approx(max(accumulate(n for _, n in changes)), rel=0.12)


def test_a_model_is_left_as_it_was(load_config, tiny_opts):
    model = build_model(load_config("quick/shapes_cityscapes_panoptic", *tiny_opts)).train()
    model.backbone.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    found = analyze(model, [{"image": torch.zeros(3, 64, 96)}])
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert not any(module._forward_hooks for module in model.modules())
    assert [stage.tokens for stage in found.stages] == [384, 96, 24, 6]
    again = analyze(model, [{"image": torch.zeros(3, 64, 96)}])
    assert again.flops == found.flops
    assert sum(found.parameters[name] for name in ("backbone", "sem_seg_head")) == sum(
        parameter.numel() for parameter in model.parameters()
    )


def test_early_predictions_make_up_what_inference_leaves_out(load_config, tiny_opts):
    """All that a model in training predicts early, less what inference predicts anyway."""
    model = build_model(load_config("quick/shapes_cityscapes_panoptic", *tiny_opts))
    predictor = model.sem_seg_head.predictor
    name, image = "sem_seg_head.predictor", [{"image": torch.zeros(3, 64, 96)}]
    found = analyze(model, image).flops[name]

    class Supervised(type(predictor)):
        """In training whatever it is told."""

        training = property(lambda self: True, lambda self, value: None)

    predictor.__dict__.pop("training")
    predictor.__class__ = Supervised
    supervised = analyze(model, image).flops[name]
    queries, channels, layers = 12, 32, 3
    embeddings = layers * queries * 3 * channels**2  # made twice then
    at_tokens = queries * channels * (6 + 24 + 96)
    more = supervised[PRODUCTS] - found[PRODUCTS]
    assert more == found[EARLY_MASKS] + embeddings + at_tokens
