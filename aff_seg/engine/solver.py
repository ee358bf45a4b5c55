"""Optimizer and learning rate schedule of the published recipes."""

from collections.abc import Callable

import detectron2.solver
import torch
from detectron2.config import CfgNode
from detectron2.solver.build import (
    get_default_optimizer_params,
    maybe_add_gradient_clipping,
    reduce_param_groups,
)
from detectron2.solver.lr_scheduler import LRMultiplier, WarmupParamScheduler
from fvcore.common.param_scheduler import ParamScheduler
from torch import nn

from aff_seg.errors import UserError

OPTIMIZERS: dict[str, Callable[[CfgNode], tuple[type[torch.optim.Optimizer], dict]]] = {
    "ADAMW": lambda cfg: (torch.optim.AdamW, {}),
    "SGD": lambda cfg: (torch.optim.SGD, {"momentum": cfg.SOLVER.MOMENTUM}),
}


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of ``SOLVER``, with its parameter groups and gradient clipping.

    Parameters whose name contains "backbone" learn at ``BASE_LR * BACKBONE_MULTIPLIER``.
    Norm layers decay by ``WEIGHT_DECAY_NORM``, embeddings by ``WEIGHT_DECAY_EMBED``, tables of
    relative positions not at all, all other parameters, biases included, by ``WEIGHT_DECAY``.

    Raises:
        UserError: ``SOLVER.OPTIMIZER`` is unknown.
    """
    solver = cfg.SOLVER
    if solver.OPTIMIZER not in OPTIMIZERS:
        raise UserError(
            f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}; choose one of {', '.join(OPTIMIZERS)}."
        )
    kind, arguments = OPTIMIZERS[solver.OPTIMIZER](cfg)
    clip = solver.CLIP_GRADIENTS
    full_model = clip.ENABLED and clip.CLIP_TYPE == "full_model"
    if not full_model:
        kind = maybe_add_gradient_clipping(cfg, kind)
    optimizer = kind(_parameter_groups(cfg, model), lr=solver.BASE_LR, **arguments)
    if full_model:
        _clip_full_model(optimizer, max_norm=clip.CLIP_VALUE, norm_type=clip.NORM_TYPE)
    return optimizer


def _parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict]:
    solver = cfg.SOLVER
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        lr_factor_func=lambda name: solver.BACKBONE_MULTIPLIER if "backbone" in name else 1.0,
        # Swin's, as it was published.
        overrides={"relative_position_bias_table": {"weight_decay": 0.0}},
    )
    embeddings = [
        parameter
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
        if parameter.requires_grad
    ]
    # Of two entries for one parameter, the later one overrides the earlier.
    return reduce_param_groups(
        [*groups, {"params": embeddings, "weight_decay": solver.WEIGHT_DECAY_EMBED}]
    )


def _clip_full_model(
    optimizer: torch.optim.Optimizer, *, max_norm: float, norm_type: float
) -> None:
    """Before each step, scale all gradients together to a norm of at most ``max_norm``."""

    def clip(optimizer, args, kwargs):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)

    optimizer.register_step_pre_hook(clip)


class _Polynomial(ParamScheduler):
    """(1 - t)^power for the share t of the training done, and never below ``ending``."""

    def __init__(self, *, power: float, ending: float) -> None:
        self._power = power
        self._ending = ending

    def __call__(self, where: float) -> float:
        return max(max(1.0 - where, 0.0) ** self._power, self._ending)


def build_lr_scheduler(
    cfg: CfgNode, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler:
    """``WarmupPolyLR``, or whatever schedule of Detectron2 ``LR_SCHEDULER_NAME`` names.

    At iteration i of ``MAX_ITER``, ``WarmupPolyLR`` multiplies every learning rate by
    (1 - i / MAX_ITER)^``POLY_LR_POWER``, and by no less than ``POLY_LR_CONSTANT_ENDING``.

    Raises:
        UserError: neither knows the name.
    """
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME != "WarmupPolyLR":
        try:
            return detectron2.solver.build_lr_scheduler(cfg, optimizer)
        except ValueError as error:
            raise UserError(f"SOLVER.LR_SCHEDULER_NAME: {error}.") from error
    schedule = WarmupParamScheduler(
        _Polynomial(power=solver.POLY_LR_POWER, ending=solver.POLY_LR_CONSTANT_ENDING),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=solver.MAX_ITER)
