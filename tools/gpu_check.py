"""Whether the model computes the same on the GPU as on the CPU: `make gpu-check`.

Compares outputs, gradients and results of a small model, then checks that a training step on the
GPU repeats. Without a GPU it says so and checks nothing.
"""

import argparse
import copy
import sys
from pathlib import Path

import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor

from aff_seg.setup_cfg import load_cfg

REPO = Path(__file__).resolve().parents[1]
CONFIG = REPO / "configs/quick/shapes_cityscapes_panoptic.yaml"
TOLERANCE = 1e-3


def make_batch() -> list[dict]:
    """Two images of different sizes with three objects each."""
    batch = []
    for size in ((128, 192), (96, 160)):
        instances = Instances(size)
        instances.gt_classes = torch.tensor([0, 11, 18])
        instances.gt_masks = torch.rand(3, *size) > 0.5
        image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
        batch.append({"image": image, "instances": instances})
    return batch


def difference(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over the norm of ``a``."""
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return ((a - b).norm() / a.norm().clamp_min(1e-12)).item()


def compare(cpu: torch.nn.Module, other: torch.nn.Module, batch: list[dict]) -> dict[str, float]:
    """Relative differences of outputs and gradients between two copies of a model."""
    found = {}
    outputs = []
    for model in (cpu, other):
        model.train().zero_grad()
        out = model.sem_seg_head(model.backbone(model.preprocess(batch).tensor))
        (out["pred_logits"].square().mean() + out["pred_masks"].square().mean()).backward()
        outputs.append(out)
    for name in ("pred_logits", "pred_masks"):
        found[name] = difference(outputs[0][name], outputs[1][name])
    gradients = [
        torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])
        for model in (cpu, other)
    ]
    found["gradients"] = difference(*gradients)
    with torch.no_grad():
        results = [model.eval()(batch)[0]["sem_seg"] for model in (cpu, other)]
    found["sem_seg"] = difference(*results)
    return found


def step_difference(model: torch.nn.Module, batch: list[dict]) -> float:
    """Largest difference between the losses of two equal training steps."""
    losses = []
    for _ in range(2):
        torch.manual_seed(1)
        losses.append(copy.deepcopy(model).train()(batch))
    return max((losses[0][name] - losses[1][name]).abs().item() for name in losses[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="device to compare with the CPU")
    device = parser.parse_args().device
    if device == "cuda" and not torch.cuda.is_available():
        print("No GPU is visible: nothing was checked.")
        return
    torch.manual_seed(0)
    cfg = load_cfg(str(CONFIG), ["MODEL.DEVICE", "cpu"])
    cpu = build_model(cfg)
    other = copy.deepcopy(cpu).to(device)
    batch = make_batch()
    rows = compare(cpu, other, batch)
    rows["repeated step"] = step_difference(other, batch)
    failed = [name for name, value in rows.items() if not value <= TOLERANCE]
    for name, value in rows.items():
        print(f"{name:15} {value:.2e}  {'FAILED' if name in failed else 'ok'}")
    print(f"{device} against CPU, tolerance {TOLERANCE}: {'FAILED' if failed else 'passed'}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
