"""Properties of the backbone that hold for every image."""

import copy

import pytest
import torch
from detectron2.layers import ShapeSpec

from aff_seg import ops
from aff_seg.backbone import AutoFocusFormer
from aff_seg.backbone.merging import choose_centres, grid_prior


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return AutoFocusFormer(
        embed_dim=[16, 16, 32, 32],
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        mlp_ratio=2.0,
        layer_scale=1e-5,
    ).eval()


SIZES = [(1, 1), (1, 600), (600, 1), (4, 4), (5, 3), (27, 29), (32, 32), (33, 64), (96, 130)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rate", [0.25, 0.2])
def test_any_size(size, rate, backbone):
    model = copy.deepcopy(backbone)
    for stage in model.layers:
        stage.rate = rate
    images = torch.randn(2, 3, *size, requires_grad=True)
    out = model(images)
    height, width = -(-size[0] // 4), -(-size[1] // 4)
    count = height * width
    for i, level in enumerate(("res2", "res3", "res4", "res5")):
        points = out[level]
        assert points.canvas == (height, width)
        assert points.feat.shape == (2, count, model.output_shape()[level].channels)
        assert points.feat.isfinite().all()
        # Distinct pixels of the canvas.
        assert (points.pos >= 0).all()
        assert (points.pos < torch.tensor([width, height])).all()
        assert all(len(set(index.tolist())) == count for index in points.pixel_index)
        stride = 2 ** (i + 2)
        reserved = -(-height // stride) * -(-width // stride)
        count = max(int(count * rate), reserved)
    sum(points.feat.sum() for points in out.values()).backward()
    assert images.grad.isfinite().all()


@pytest.mark.parametrize("size", [(33, 64), (64, 96)])
def test_survivors_are_the_next_stage(size, backbone):
    out = backbone(torch.randn(2, 3, *size))
    levels = list(out.values())
    for level, after in zip(levels, levels[1:], strict=False):
        index = level.survivors[..., None].expand(-1, -1, 2)
        kept = {tuple(p) for p in level.pos.gather(1, index)[0].tolist()}
        assert kept == {tuple(p) for p in after.pos[0].tolist()}
        assert ((level.importance > 0) & (level.importance < 1)).all()
        assert not level.importance.requires_grad
    assert levels[-1].survivors is None


def test_results_repeat_and_do_not_depend_on_the_batch(backbone):
    images = torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        together, again = backbone(images), backbone(images)
        alone = backbone(images[1:2])
    for level, points in together.items():
        assert torch.equal(points.feat, again[level].feat)
        assert torch.equal(points.pos[1:2], alone[level].pos)
        torch.testing.assert_close(points.feat[1:2], alone[level].feat)


def test_forward_writes_nothing(backbone):
    def everything():
        return {name: copy.deepcopy(vars(module)) for name, module in backbone.named_modules()}

    def same(a, b):
        if isinstance(a, torch.Tensor):
            return torch.equal(a, b)
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
        return isinstance(a, torch.nn.Module) or a == b

    def plain(state):
        return {k: {n: v for n, v in s.items() if n != "_modules"} for k, s in state.items()}

    before = plain(everything())
    # A small image first: nothing about it may stay.
    for size in ((8, 8), (64, 96), (40, 40)):
        backbone(torch.randn(1, 3, *size))
    assert same(before, plain(everything()))


@pytest.mark.parametrize("learns", [True, False])
def test_readers_are_made_once_a_stage_where_gradients_need_them(backbone, learns, monkeypatch):
    made, given = [], []
    make, attend = ops.cluster_readers, ops.cluster_attention

    def remember(*args):
        made.append(make(*args))
        return made[-1]

    def listen(*args, readers):
        given.append(readers)
        return attend(*args, readers=readers)

    monkeypatch.setattr(ops, "cluster_readers", remember)
    monkeypatch.setattr(ops, "cluster_attention", listen)
    model = copy.deepcopy(backbone)
    for stage in model.layers:
        stage.blocks.append(copy.deepcopy(stage.blocks[0]))
    with torch.set_grad_enabled(learns):
        model(torch.randn(1, 3, 96, 64))
    assert len(made) == 4 * learns and len(given) == 8
    for i, readers in enumerate(given):
        assert readers is (made[i // 2] if learns else None)
    given.clear()
    model.requires_grad_(False)(torch.randn(1, 3, 96, 64))
    assert given == [None] * 8


def test_grid_memory_serves_training_after_inference(backbone):
    size = (44, 52)  # not used elsewhere
    with torch.inference_mode():
        backbone(torch.randn(1, 3, *size))
    out = backbone(torch.randn(2, 3, *size))
    sum(points.feat.sum() for points in out.values()).backward()


def test_importance_learns_from_the_loss(backbone):
    backbone.zero_grad()
    out = backbone(torch.randn(1, 3, 64, 64))
    out["res5"].feat.square().sum().backward()
    for stage in list(backbone.layers)[:3]:
        assert stage.prob_net.weight.grad.abs().sum() > 0


def test_important_tokens_survive():
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    pos = torch.stack((x, y), -1).view(1, -1, 2)
    importance = torch.full((1, 64), 0.1)
    importance[0, 9] = 0.9  # (1, 1), off every grid
    kept = choose_centres(importance, pos, (8, 8), stage=1, alpha=4.0, rate=0.25, reserve=True)
    assert kept.shape == (1, 16)
    assert 9 in kept[0]
    reserved = {(px + 8 * py) for px in (0, 4) for py in (0, 4)}
    assert reserved <= set(kept[0].tolist())
    assert torch.equal(kept, kept.sort().values)


def test_without_importance_the_grid_survives():
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    pos = torch.stack((x, y), -1).view(1, -1, 2)
    kept = choose_centres(
        torch.full((1, 64), 0.5), pos, (8, 8), stage=1, alpha=4.0, rate=0.25, reserve=False
    )
    assert (pos[0, kept[0]] % 2 == 0).all()


def test_grid_prior_follows_the_local_density():
    # Neighbours 2 apart keep multiples of 4; neighbours 3 apart count as 4 and keep multiples of 8.
    near = torch.tensor([[[0.0, 0], [2, 0], [4, 0], [6, 0]]])
    assert grid_prior(near, 2).tolist() == [[True, False, True, False]]
    far = torch.tensor([[[0.0, 0], [3, 0], [8, 0], [11, 0]]])
    assert grid_prior(far, 3).tolist() == [[True, False, True, False]]


def test_explicit_arguments_are_checked():
    sizes = {"embed_dim": [8] * 4, "depths": [1] * 4, "num_heads": [1] * 4, "mlp_ratio": 2.0}
    assert AutoFocusFormer(**sizes).output_shape()["res5"] == ShapeSpec(channels=8, stride=32)
    with pytest.raises(ValueError, match=r"depths needs 4 values, one a stage; got \[1\]"):
        AutoFocusFormer(**sizes | {"depths": [1]})
    with pytest.raises(ValueError, match="ds_rate must be above 0 and at most 1, got 1.5"):
        AutoFocusFormer(**sizes, ds_rate=1.5)
    with pytest.raises(ValueError, match="multiple of num_heads, got 8 and 3"):
        AutoFocusFormer(**sizes | {"num_heads": [3] * 4})
    with pytest.raises(ValueError, match=r"got \['res6'\]"):
        AutoFocusFormer(**sizes, out_features=["res6"])


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 3, 0, 8)])
def test_images_are_checked(shape, backbone):
    with pytest.raises(ValueError, match="images must be"):
        backbone(torch.zeros(shape))
