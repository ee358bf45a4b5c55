"""Times of the operators and of the parts of the whole model: `make bench`.

Prints a table and writes the same as JSON. Every figure is the median of several runs on random
images with random weights, batch 1, float32. Figures of one run compare; those of different runs
on a busy machine do not.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.modeling import build_model
from detectron2.utils.logger import setup_logger
from tabulate import tabulate

from aff_seg import ops
from aff_seg.setup_cfg import load_cfg
from aff_seg.structures import Points

REPO = Path(__file__).resolve().parents[1]


def median_ms(call: Callable[[], object], runs: int) -> float:
    """Median time of a call in milliseconds, after one that does not count."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def model_rows(variant: str, size: tuple[int, int], runs: int) -> list[dict]:
    """Times of backbone, head and post-processing of one variant."""
    cfg = load_cfg(str(REPO / f"configs/cityscapes/panoptic/aff_{variant}.yaml"))
    model = build_model(cfg).eval()
    image = {"image": torch.randint(0, 256, (3, *size), dtype=torch.uint8)}
    padded = model.preprocess([image]).tensor
    tokens = model.backbone(padded)
    outputs = model.sem_seg_head(tokens)
    logits, masks = outputs["pred_logits"][0], outputs["pred_masks"][0]
    calls = {
        "backbone": lambda: model.backbone(padded),
        "head": lambda: model.sem_seg_head(tokens),
        "post-processing": lambda: model._postprocess(
            logits, masks, tuple(padded.shape[-2:]), size, image
        ),
        "whole model": lambda: model([image]),
    }
    return [
        {"what": f"AFF-{variant}, {name}", "size": "x".join(map(str, size)), "ms": value}
        for name, value in ((name, median_ms(call, runs)) for name, call in calls.items())
    ]


def operator_rows(size: tuple[int, int], runs: int) -> list[dict]:
    """Times of the operators on the tokens of AFF-Tiny's first stages."""
    height, width = size[0] // 4, size[1] // 4
    device = "cuda" if torch.cuda.is_available() else "cpu"
    count, heads, dim, m = height * width, 2, 32, 8
    pixel = torch.arange(count, device=device)
    pos = torch.stack((pixel % width, pixel // width), -1).float()[None]
    kept = pos[:, torch.randperm(count, device=device)[: count // 4]]
    q, k, v = torch.randn(3, 1, count, heads, dim, device=device)
    clusters = torch.randint(0, count // m, (1, count, 6), device=device, dtype=torch.int32)
    learned = [torch.randn(s, device=device) for s in ((heads, 5), heads, heads * dim, heads * dim)]
    net = [torch.randn(s, device=device) for s in ((4, 5), 4, 4, 4)]
    feat = torch.randn(1, count // 4, heads * dim, device=device)
    table, _ = ops.knn(pos, kept, 4)
    centre = torch.arange(0, count, 4, device=device)[None]
    merged = clusters[:, ::4]
    points = Points(feat, kept, (height, width))
    loc = pos[:, :: 4 * 4, None, None, None] + torch.randn(1, 1, 8, 1, 4, 2, device=device)
    weight = torch.rand(loc.shape[:-1], device=device)
    value = points.feat.unflatten(-1, (8, -1))
    grid = table.view(1, 1, height, width, 4)
    calls = {
        "knn": lambda: ops.knn(pos, kept, 4),
        "cluster_attention": lambda: ops.cluster_attention(q, k, v, pos, clusters, m, *learned),
        "point_conv": lambda: ops.point_conv(q.flatten(2), None, pos, centre, merged, m, *net),
        "shepard_interpolate": lambda: ops.shepard_interpolate(feat, kept, pos, table, 3.0),
        "deformable_points": lambda: ops.deformable_points(value, kept, grid, loc, weight, 3.0),
    }
    paths = ops.active_paths()
    return [
        {"what": f"{name}, {paths[name]}", "size": f"{count} tokens", "ms": median_ms(call, runs)}
        for name, call in calls.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", default=["mini", "tiny"], metavar="VARIANT")
    parser.add_argument("--size", nargs=2, type=int, default=[512, 512], metavar=("H", "W"))
    parser.add_argument("--runs", type=int, default=5, help="runs per figure (default 5)")
    parser.add_argument("--output", default="output/benchmark.json", metavar="FILE")
    args = parser.parse_args()
    setup_logger(name="aff_seg")
    torch.manual_seed(0)
    with torch.inference_mode():
        rows = operator_rows(tuple(args.size), args.runs)
        for variant in args.variants:
            rows += model_rows(variant, tuple(args.size), args.runs)
    on_gpu = torch.cuda.is_available()
    report = {
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or "CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": rows,
    }
    print(
        tabulate([list(row.values()) for row in rows], headers=["", "size", "ms"], floatfmt=".1f")
    )
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"Written to {output}.")


if __name__ == "__main__":
    main()
