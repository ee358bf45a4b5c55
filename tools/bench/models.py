"""The models that are compared, with random weights, and the picture they get."""

from pathlib import Path

import torch
from detectron2.modeling import build_model
from torch import Tensor, nn

from aff_seg.setup_cfg import load_cfg
from bench.measure import Sample, Stopwatch, Way, best_device, combine

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
# Code is loaded and libraries start up on a picture of this side, before anything is measured.
WARM_UP = (64, 64)


def random_image(size: tuple[int, int]) -> Tensor:
    """(3, h, w) uint8."""
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8)


def our_model(variant: str, opts: tuple = ()) -> nn.Module:
    """The whole model as configured for Cityscapes panoptic, in eval mode."""
    config = REPO / f"configs/cityscapes/panoptic/aff_{variant}.yaml"
    return build_model(load_cfg(str(config), opts)).eval()


def our_parts(variant: str, size: tuple[int, int], opts: tuple = ()) -> Way:
    """Image to results, split where the backbone and the head end."""
    device = best_device()
    model = our_model(variant, opts)
    make_sure(model.sem_seg_head.predictor.class_embed)

    @torch.inference_mode()
    def run(image: Tensor, memory: bool) -> dict[str, Sample]:
        watch = Stopwatch(device, memory)
        hooks = [
            model.backbone.register_forward_hook(lambda *_: watch.lap("backbone")),
            model.sem_seg_head.register_forward_hook(lambda *_: watch.lap("head")),
        ]
        model([{"image": image}])
        watch.lap(POST)
        for hook in hooks:
            hook.remove()
        laps = watch.samples
        return {
            **laps,
            LOGITS: combine(laps, ("backbone", "head")),
            WHOLE: combine(laps, ("backbone", "head", POST)),
        }

    run(random_image(WARM_UP), False)
    image = random_image(size)
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


def mask2former(size: tuple[int, int]) -> Way:
    """Image to panoptic result by the transformers package, split at the logits."""
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    device = best_device()
    swin = SwinConfig(
        embed_dim=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(backbone_config=swin, num_labels=CLASSES)
    model = Mask2FormerForUniversalSegmentation(config).eval().to(device)
    make_sure(model.class_predictor)
    processor = Mask2FormerImageProcessor()
    mean, std = (torch.tensor(x, device=device).view(-1, 1, 1) for x in (MEAN, STD))

    @torch.inference_mode()
    def run(image: Tensor, memory: bool) -> dict[str, Sample]:
        watch = Stopwatch(device, memory)
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
    image = random_image(size)
    return lambda memory: run(image, memory)


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
