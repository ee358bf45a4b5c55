"""Parameter groups, gradient clipping and learning rates of the published recipes."""

import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from aff_seg import add_aff_config
from aff_seg.engine.solver import build_lr_scheduler, build_optimizer
from aff_seg.errors import UserError


class Model(nn.Module):
    """One module of every kind that the optimizer tells apart."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleDict(
            {"conv": nn.Conv2d(3, 4, 1), "bn": nn.BatchNorm2d(4), "norm": nn.LayerNorm(4)}
        )
        self.backbone.blank = nn.Parameter(torch.ones(4))
        self.head = nn.ModuleDict(
            {"linear": nn.Linear(4, 2), "norm": nn.LayerNorm(2), "query": nn.Embedding(5, 4)}
        )
        self.head.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        self.head.shepard_power = nn.Parameter(torch.ones(1))


def config(**solver):
    cfg = get_cfg()
    add_aff_config(cfg)
    cfg.SOLVER.BASE_LR = 1e-3
    cfg.SOLVER.WEIGHT_DECAY = 0.05
    cfg.SOLVER.WARMUP_ITERS = 0
    for key, value in solver.items():
        setattr(cfg.SOLVER, key, value)
    return cfg


def clip(kind, value):
    cfg = config(OPTIMIZER="SGD", MOMENTUM=0.0, WEIGHT_DECAY=0.0, BASE_LR=1.0)
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = kind
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = value
    return cfg


def test_every_parameter_has_its_rate_and_decay():
    model = Model()
    optimizer = build_optimizer(config(), model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = {
        (group["lr"], group["weight_decay"]): sorted(names[p] for p in group["params"])
        for group in optimizer.param_groups
    }
    assert isinstance(optimizer, torch.optim.AdamW)
    assert groups == {
        (1e-4, 0.05): ["backbone.blank", "backbone.conv.bias", "backbone.conv.weight"],
        (1e-4, 0.0): [
            "backbone.bn.bias",
            "backbone.bn.weight",
            "backbone.norm.bias",
            "backbone.norm.weight",
        ],
        (1e-3, 0.05): ["head.linear.bias", "head.linear.weight", "head.shepard_power"],
        (1e-3, 0.0): ["head.norm.bias", "head.norm.weight", "head.query.weight"],
    }


def test_embeddings_have_a_decay_of_their_own():
    model = Model()
    optimizer = build_optimizer(config(WEIGHT_DECAY_EMBED=0.01), model)
    (group,) = [group for group in optimizer.param_groups if group["weight_decay"] == 0.01]
    assert group["params"] == [model.head.query.weight]
    assert group["lr"] == 1e-3


def test_full_model_clip_bounds_the_norm_of_all_gradients_together():
    model = Model()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = build_optimizer(clip("full_model", 0.01), model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    moved = [a - b.detach() for a, b in zip(before, model.parameters(), strict=True)]
    learned = [m for m, p in zip(moved, model.parameters(), strict=True) if p.requires_grad]
    norm = torch.cat([m.flatten() for m in learned]).norm()
    assert norm == pytest.approx(0.01, rel=1e-3)
    # All by the same factor, and small gradients stay as they are.
    assert torch.cat([m.flatten() for m in learned]).std() < 1e-6
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-5) if parameter.requires_grad else None
    linear = model.head.linear.weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(linear - model.head.linear.weight, torch.full_like(linear, 1e-5))


def test_detectron2_clip_types_still_work():
    model = Model()
    optimizer = build_optimizer(clip("value", 0.5), model)
    linear = model.head.linear.weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    optimizer.step()
    torch.testing.assert_close(linear - model.head.linear.weight, torch.full_like(linear, 0.5))


def test_unknown_optimizer_is_a_user_error():
    with pytest.raises(UserError, match="SOLVER.OPTIMIZER is 'LION'; choose one of ADAMW, SGD."):
        build_optimizer(config(OPTIMIZER="LION"), Model())


def rates(cfg):
    """Learning rates of the head in all iterations, and after the last."""
    optimizer = build_optimizer(cfg, Model())
    scheduler = build_lr_scheduler(cfg, optimizer)
    result = [max(scheduler.get_last_lr())]
    for _ in range(cfg.SOLVER.MAX_ITER):
        optimizer.step()
        scheduler.step()
        result.append(max(scheduler.get_last_lr()))
    return result


def test_polynomial_schedule_follows_its_formula():
    cfg = config(LR_SCHEDULER_NAME="WarmupPolyLR", MAX_ITER=20)
    assert rates(cfg) == pytest.approx([1e-3 * (1 - i / 20) ** 0.9 for i in range(21)])


def test_polynomial_schedule_may_end_above_zero_and_warm_up():
    cfg = config(
        LR_SCHEDULER_NAME="WarmupPolyLR",
        MAX_ITER=20,
        POLY_LR_CONSTANT_ENDING=0.1,
        WARMUP_ITERS=4,
        WARMUP_FACTOR=0.5,
    )
    values = rates(cfg)
    assert values[0] == pytest.approx(0.5e-3)
    assert values[:4] == sorted(values[:4])
    assert values[4:] == pytest.approx([1e-3 * max((1 - i / 20) ** 0.9, 0.1) for i in range(4, 21)])


def test_step_schedule_of_coco():
    cfg = config(LR_SCHEDULER_NAME="WarmupMultiStepLR", MAX_ITER=10, STEPS=(6, 8), WARMUP_ITERS=1)
    cfg.SOLVER.WARMUP_FACTOR = 1.0
    assert rates(cfg)[:10] == pytest.approx([1e-3] * 6 + [1e-4] * 2 + [1e-5] * 2)


def test_unknown_schedule_is_a_user_error():
    cfg = config(LR_SCHEDULER_NAME="Cyclic")
    with pytest.raises(UserError, match="SOLVER.LR_SCHEDULER_NAME.*Cyclic"):
        build_lr_scheduler(cfg, build_optimizer(cfg, Model()))
