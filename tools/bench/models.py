"""The models that are compared, with random weights, and the picture they get."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor, nn

from aff_seg.cuda_graph import captured
from aff_seg.engine.solver import build_optimizer
from aff_seg.setup_cfg import load_cfg
from bench.measure import Sample, Stopwatch, Way, best_device, combine, single

REPO = Path(__file__).resolve().parents[2]
# Queries that every model is made sure of, about as many as a street picture has segments.
SURE_QUERIES = 20
CLASSES, THRESHOLD = 19, 0.8
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
PANOPTIC_ONLY = (
    *("MODEL.MASK_FORMER.TEST.SEMANTIC_ON", False),
    *("MODEL.MASK_FORMER.TEST.INSTANCE_ON", False),
)
# Parts: of every model, and of the backbone's training.
LOGITS, POST, WHOLE = "image to logits", "post-processing", "whole model"
FORWARD_BACKWARD = "backbone, forward + backward"
TRAINING_STEP = "training step"
# Code is loaded and libraries start up on a picture of this side, before anything is measured.
WARM_UP = (64, 64)


def random_image(size: tuple[int, int]) -> Tensor:
    """(3, h, w) uint8."""
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8)


def autocast(dtype: torch.dtype) -> torch.autocast:
    """Mixed precision with ``dtype``, none for float32."""
    mixed = dtype != torch.float32
    return torch.autocast(best_device().type, dtype if mixed else None, enabled=mixed)


def our_config(variant: str, opts: tuple = ()) -> CfgNode:
    """As for Cityscapes panoptic."""
    return load_cfg(str(REPO / f"configs/cityscapes/panoptic/aff_{variant}.yaml"), opts)


def our_model(variant: str, opts: tuple = ()) -> nn.Module:
    """The whole model as configured for Cityscapes panoptic, in eval mode."""
    return build_model(our_config(variant, opts)).eval()


def sure_model(variant: str, opts: tuple = ()) -> nn.Module:
    """:func:`our_model`, sure of some queries."""
    model = our_model(variant, opts)
    make_sure(model.sem_seg_head.predictor.class_embed)
    return model


def our_parts(variant: str, size: tuple[int, int], opts: tuple = ()) -> Way:
    """:func:`parts_of` a model of our own, in float32."""
    return parts_of(sure_model(variant, opts), size, torch.float32)


def parts_of(model: nn.Module, size: tuple[int, int], dtype: torch.dtype) -> Way:
    """Image to results, split where the backbone and the head end."""
    device = best_device()

    @torch.inference_mode()
    def run(image: Tensor, memory: bool) -> dict[str, Sample]:
        watch = Stopwatch(device, memory)
        with (
            model.backbone.register_forward_hook(lambda *_: watch.lap("backbone")),
            model.sem_seg_head.register_forward_hook(lambda *_: watch.lap("head")),
            autocast(dtype),
        ):
            model([{"image": image}])
        watch.lap(POST)
        laps = watch.samples
        return {
            **laps,
            LOGITS: combine(laps, ("backbone", "head")),
            WHOLE: combine(laps, ("backbone", "head", POST)),
        }

    run(random_image(WARM_UP), False)
    image = random_image(size).to(device)
    return lambda memory: run(image, memory)


def our_training(variant: str, size: tuple[int, int]) -> Way:
    """Forward and backward of the backbone."""
    device = best_device()
    backbone = our_model(variant).backbone.train()

    def run(images: Tensor, memory: bool) -> dict[str, Sample]:
        backbone.zero_grad()
        watch = Stopwatch(device, memory)
        tokens = backbone(images)
        loss = sum(points.feat.square().mean() for points in tokens.values())
        loss.backward()
        watch.lap(FORWARD_BACKWARD)
        return watch.samples

    run(torch.randn(1, 3, *WARM_UP, device=device), False)
    images = torch.randn(1, 3, *size, device=device)
    return lambda memory: run(images, memory)


def our_training_state(variant: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The whole model in training mode, and its optimizer."""
    cfg = our_config(variant)
    model = build_model(cfg).train()
    return model, build_optimizer(cfg, model)


def steps_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, size: tuple[int, int], dtype: torch.dtype
) -> Way:
    """Steps of training: forward, losses, backward and optimizer, with everything on the device."""
    device = best_device()

    def run(batch: list[dict], memory: bool) -> dict[str, Sample]:
        watch = Stopwatch(device, memory)
        with autocast(dtype):
            losses = model(batch)
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        watch.lap(TRAINING_STEP)
        return watch.samples

    run(_labelled(WARM_UP, device), False)
    batch = _labelled(size, device)
    return lambda memory: run(batch, memory)


def _labelled(size: tuple[int, int], device: torch.device) -> list[dict]:
    """A random image whose objects are upright stripes of equal width."""
    stripe = torch.arange(size[1], device=device) * SURE_QUERIES // size[1]
    objects = torch.arange(SURE_QUERIES, device=device)
    instances = Instances(size)
    instances.gt_classes = objects % CLASSES
    instances.gt_masks = (stripe == objects[:, None, None]).expand(-1, *size).contiguous()
    return [{"image": random_image(size).to(device), "instances": instances}]


def our_backbone(variant: str, size: tuple[int, int], dtype: torch.dtype) -> tuple[Way, Way]:
    """The backbone alone: as it is called, and as a CUDA graph of the same."""
    device = best_device()
    backbone = our_model(variant).backbone
    images = torch.randn(1, 3, *size, device=device)

    @torch.inference_mode()
    def forward(images: Tensor) -> dict[str, Tensor]:
        with autocast(dtype):
            return {level: points.feat for level, points in backbone(images).items()}

    forward(torch.randn(1, 3, *WARM_UP, device=device))

    @cache
    def graph() -> Callable[[Tensor], dict[str, Tensor]]:
        return captured(forward, images)

    # The first run captures, so that its peak is that of the graph's memory too.
    return single(partial(forward, images), device), single(lambda: graph()(images), device)


def mask2former(size: tuple[int, int]) -> Way:
    """:func:`mask2former_of` a model of its own, in float32."""
    return mask2former_of(mask2former_model(), size, torch.float32)


def mask2former_model() -> nn.Module:
    """Mask2Former with a Swin-Tiny of the transformers package, sure of some queries."""
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        SwinConfig,
    )

    swin = SwinConfig(
        embed_dim=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(backbone_config=swin, num_labels=CLASSES)
    model = Mask2FormerForUniversalSegmentation(config)
    make_sure(model.class_predictor)
    return model.eval().to(best_device())


def mask2former_of(model: nn.Module, size: tuple[int, int], dtype: torch.dtype) -> Way:
    """Image to panoptic result by the transformers package, split at the logits."""
    from transformers import Mask2FormerImageProcessor

    device = best_device()
    processor = Mask2FormerImageProcessor()
    mean, std = (torch.tensor(x, device=device).view(-1, 1, 1) for x in (MEAN, STD))

    @torch.inference_mode()
    def run(image: Tensor, memory: bool) -> dict[str, Sample]:
        watch = Stopwatch(device, memory)
        with autocast(dtype):
            outputs = model(pixel_values=((image.to(device) - mean) / std)[None])
        watch.lap(LOGITS)
        processor.post_process_panoptic_segmentation(
            outputs,
            threshold=THRESHOLD,
            label_ids_to_fuse=set(range(11)),
            target_sizes=[image.shape[1:]],
        )
        watch.lap(POST)
        laps = watch.samples
        return {**laps, WHOLE: combine(laps, (LOGITS, POST))}

    run(random_image(WARM_UP), False)
    image = random_image(size).to(device)
    return lambda memory: run(image, memory)


def start_libraries() -> None:
    """Have products of matrices take the memory that they keep, forward and backward."""
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(64, 64, device=best_device(), dtype=dtype, requires_grad=True)
        (x @ x).sum().backward()


def make_sure(class_head: nn.Module) -> None:
    """Make the first queries certain of a class each, so that there is something to process.

    With random weights no query reaches the panoptic threshold.
    """
    query = torch.arange(SURE_QUERIES)

    def sure(_module: nn.Module, _inputs: tuple, logits: Tensor) -> Tensor:
        logits = logits.clone()
        logits[:, query, query % CLASSES] += 100
        return logits

    class_head.register_forward_hook(sure)
