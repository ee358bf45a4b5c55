"""The whole model: training steps and inference on awkward input."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances

from aff_seg.errors import UserError
from aff_seg.meta_arch import MaskFormer

QUICK = "quick/shapes_cityscapes_panoptic"


@pytest.fixture(scope="module")
def model(load_config, tiny_opts):
    torch.manual_seed(0)
    # Every query speaks, so that results are never empty by accident.
    opts = ["MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", 0.0]
    return build_model(load_config(QUICK, *tiny_opts, *opts))


def _image(height, width):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def _record(height, width, objects):
    instances = Instances((height, width))
    instances.gt_classes = torch.arange(objects) % 19
    instances.gt_masks = torch.rand(objects, height, width) > 0.5
    return {"image": _image(height, width), "instances": instances}


@pytest.mark.parametrize("objects", [(3, 5), (0, 2), (0, 0)])
def test_training_step(objects, model):
    model.train().zero_grad()
    batch = [_record(40, 64, objects[0]), _record(64, 50, objects[1])]
    losses = model(batch)
    assert len(losses) == 3 * 4
    total = sum(losses.values())
    assert total.isfinite()
    total.backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    # The last layer of stage 4 hands on nothing but its tokens; all else learns.
    assert missing == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


GRIDS = {
    "build_resnet_backbone": {
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
        "MODEL.RESNETS.NORM": "BN",
    },
    "build_swin_backbone": {"MODEL.SWIN.EMBED_DIM": 12, "MODEL.SWIN.DEPTHS": [1, 1, 1, 1]},
    "build_resnet_fpn_backbone": {
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.FPN.OUT_CHANNELS": 8,
    },
}


@pytest.fixture(scope="module", params=GRIDS)
def grid_model(request, load_config, tiny_opts):
    torch.manual_seed(0)
    changes = {"MODEL.BACKBONE.NAME": request.param, **GRIDS[request.param]}
    opts = [word for pair in changes.items() for word in pair]
    return build_model(load_config(QUICK, *tiny_opts, *opts))


def test_other_backbones_train(grid_model):
    grid_model.train().zero_grad()
    losses = grid_model([_record(40, 64, 3), _record(64, 50, 5)])
    sum(losses.values()).backward()
    trained = [p for p in grid_model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


@pytest.mark.parametrize("size", [(1, 1), (33, 5), (64, 96)])
def test_other_backbones_segment_any_size(size, grid_model):
    grid_model.eval()
    request = {"image": _image(*size), "height": 20, "width": 30}
    (result,), tokens = grid_model.forward_with_tokens([request])
    assert result["sem_seg"].shape == (19, 20, 30)
    canvas = tuple(-(-side // 32) * 8 for side in size)
    assert list(tokens)[:4] == ["res2", "res3", "res4", "res5"]
    for step, points in zip((1, 2, 4, 8), tokens.values(), strict=False):
        assert points.canvas == canvas
        assert points.pos.shape[1] == canvas[0] * canvas[1] // step**2
        assert points.pos[0, 0].tolist() == [(step - 1) / 2] * 2


def test_a_backbone_without_fine_levels_is_told(load_config, tiny_opts):
    opts = ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES"]
    with pytest.raises(UserError, match=r"needs \['res2', 'res3'\] of the backbone, which gives"):
        build_model(load_config(QUICK, *tiny_opts, *opts, ["res4", "res5"]))


def test_losses_are_weighted(model):
    weighted = model._weigh({"loss_ce": 1.0, "loss_mask_2": 1.0, "loss_dice_0": 1.0})
    assert weighted == {"loss_ce": 2.0, "loss_mask_2": 5.0, "loss_dice_0": 5.0}


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (33, 5), (64, 96)])
def test_results_of_any_size(size, model):
    model.eval()
    (result,) = model([{"image": _image(*size), "height": 20, "width": 30}])
    assert result["sem_seg"].shape == (19, 20, 30)
    segment_map, segments = result["panoptic_seg"]
    assert segment_map.shape == (20, 30)
    assert set(segment_map.unique().tolist()) - {0} <= {s["id"] for s in segments}
    instances = result["instances"]
    assert instances.pred_masks.shape[1:] == (20, 30)
    assert instances.image_size == (20, 30)
    assert set(instances.pred_classes.tolist()) <= set(range(11, 19))


def test_an_image_alone_and_in_a_batch(model):
    model.eval()
    a, b = {"image": _image(64, 90)}, {"image": _image(40, 96)}
    for one, both in zip(model([a]), model([a, b]), strict=False):
        torch.testing.assert_close(one["sem_seg"], both["sem_seg"])
        assert torch.equal(one["panoptic_seg"][0], both["panoptic_seg"][0])
        torch.testing.assert_close(one["instances"].scores, both["instances"].scores)


def test_results_repeat(model):
    model.eval()
    batch = [{"image": _image(64, 96)}]
    first, second = model(batch)[0], model(batch)[0]
    assert torch.equal(first["sem_seg"], second["sem_seg"])
    assert torch.equal(first["panoptic_seg"][0], second["panoptic_seg"][0])


def test_tokens_come_with_the_results(model):
    model.eval()
    results, tokens = model.forward_with_tokens([{"image": _image(64, 96)}])
    assert len(results) == 1
    assert [len(tokens[f"res{i}"].pos[0]) for i in range(2, 6)] == [384, 96, 24, 6]


def test_unreachable_queries_do_not_change_results(load_config, tiny_opts):
    torch.manual_seed(3)
    opts = [*tiny_opts, "MODEL.MASK_FORMER.TEST.SEMANTIC_ON", False, "TEST.DETECTIONS_PER_IMAGE", 5]
    opts += ["MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", 0.7]
    model = build_model(load_config(QUICK, *opts)).eval()
    logits, masks = 3 * torch.randn(12, 20), 3 * torch.randn(12, 16, 24)
    size, request = (60, 90), {"height": 60, "width": 90}
    fast = model._postprocess(logits, masks, (64, 96), size, request)
    assert 2 < len(model._reachable(logits, masks)[0]) < 12
    model._reachable = lambda *both: both
    slow = model._postprocess(logits, masks, (64, 96), size, request)
    assert torch.equal(fast["panoptic_seg"][0], slow["panoptic_seg"][0])
    assert fast["panoptic_seg"][1] == slow["panoptic_seg"][1]
    assert torch.equal(fast["instances"].scores, slow["instances"].scores)
    assert torch.equal(fast["instances"].pred_masks, slow["instances"].pred_masks)


def test_semantic_alone_infers_before_the_resize(load_config, tiny_opts):
    opts = [
        "MODEL.MASK_FORMER.TEST.INSTANCE_ON",
        False,
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON",
        False,
    ]
    model = build_model(load_config(QUICK, *tiny_opts, *opts)).eval()
    (result,) = model([{"image": _image(30, 40), "height": 15, "width": 80}])
    assert set(result) == {"sem_seg"} and result["sem_seg"].shape == (19, 15, 80)


def test_something_must_be_inferred(model):
    with pytest.raises(ValueError, match="nothing to infer"):
        MaskFormer(
            backbone=model.backbone,
            sem_seg_head=model.sem_seg_head,
            criterion=model.criterion,
            loss_weights=model.loss_weights,
            pixel_mean=[0.0] * 3,
            pixel_std=[1.0] * 3,
            semantic_on=False,
        )


def test_attention_dropout_is_refused(load_config):
    with pytest.raises(ValueError, match="ATTN_DROP_RATE must be 0, got 0.1"):
        build_model(load_config(QUICK, "MODEL.AFF.ATTN_DROP_RATE", 0.1))


def test_widths_must_agree(load_config):
    with pytest.raises(ValueError, match="must be equal, got 128 and 96"):
        build_model(load_config(QUICK, "MODEL.MASK_FORMER.HIDDEN_DIM", 96))


@pytest.mark.parametrize("size", [(1, 1), (40, 70)])
def test_panoptic_alone_without_a_confident_query(size, load_config, tiny_opts):
    opts = [
        "MODEL.MASK_FORMER.TEST.INSTANCE_ON",
        False,
        "MODEL.MASK_FORMER.TEST.SEMANTIC_ON",
        False,
    ]
    opts += ["MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", 1.0]
    model = build_model(load_config(QUICK, *tiny_opts, *opts)).eval()
    (result,) = model([{"image": _image(*size), "height": 20, "width": 30}])
    segment_map, segments = result["panoptic_seg"]
    assert segments == [] and segment_map.shape == (20, 30) and not segment_map.any()
