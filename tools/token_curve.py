"""Accuracy and time of a trained model by the share of tokens that it keeps.

    python tools/token_curve.py --config-file configs/quick/shapes_demo.yaml \\
        --weights demo/aff_shapes.safetensors --output docs/token_curve

Evaluates the first test set of the config at each share, without training anew. Prints a table
and writes it as <NAME>.json and as a picture, <NAME>.png.
"""

import argparse
import json
import logging
import os
import statistics
import time
from collections.abc import Sequence

import torch
from detectron2.data import DatasetCatalog
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from aff_seg.atomic_file import atomic_open
from aff_seg.cli import plain_errors
from aff_seg.data import check_datasets
from aff_seg.engine.trainer import Trainer
from aff_seg.errors import UserError, write_errors
from aff_seg.evaluation import check_evaluators, summarize
from aff_seg.prediction.images import read_image
from aff_seg.prediction.segmenter import Segmenter
from aff_seg.setup_cfg import load_cfg

SHARES = (0.1, 0.15, 0.2, 0.25, 0.35, 0.5, 1.0)
# Images whose times are measured, each at every share in turn.
TIMED = 8
# Scores that the picture shows, as far as there are.
SHOWN = ("PQ", "AP", "mIoU")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="config of the model, path or name"
    )
    parser.add_argument("--weights", required=True, metavar="FILE", help="its checkpoint")
    parser.add_argument("--output", required=True, metavar="NAME", help="of the files, no suffix")
    parser.add_argument(
        "--shares",
        nargs="+",
        type=float,
        default=SHARES,
        metavar="SHARE",
        help=f"above 0 and at most 1 (default: {' '.join(map(str, SHARES))})",
    )
    parser.add_argument(
        "--opts", nargs="*", default=[], metavar="KEY VALUE", help="config keys to change"
    )
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    with plain_errors("token_curve.py"):
        with write_errors(f"--output {args.output}"):
            os.makedirs(os.path.dirname(args.output) or ".", exist_ok=True)
        rows = measure(args)
        with write_errors(f"--output {args.output}"):
            write(rows, args.output)


def measure(args: argparse.Namespace) -> list[dict]:
    """A row for each share: ``share``, ``milliseconds`` per image, and the scores in percent."""
    opts = [*args.opts, "MODEL.WEIGHTS", args.weights]
    cfg = load_cfg(args.config_file, opts)
    if not cfg.DATASETS.TEST:
        raise UserError(f"{args.config_file} names no DATASETS.TEST to measure scores on.")
    cfg.DATASETS.TEST = cfg.DATASETS.TEST[:1]
    check_datasets(cfg, splits=("TEST",))
    check_evaluators(cfg)
    segmenter = Segmenter(cfg)
    shares = sorted(set(args.shares))
    for share in shares:
        segmenter.keep = share  # refuses what is impossible before anything is measured
    rows = []
    for share in shares:
        segmenter.keep = share
        rows.append({"share": share, **summarize(Trainer.test(cfg, segmenter.model))})
    seconds = time_shares(segmenter, cfg.DATASETS.TEST[0], shares)
    for row, taken in zip(rows, seconds, strict=True):
        row["milliseconds"] = 1000 * taken
    return rows


def time_shares(segmenter: Segmenter, dataset: str, shares: Sequence[float]) -> list[float]:
    """Median seconds per image at each share, the shares taking turns."""
    records = DatasetCatalog.get(dataset)[:TIMED]
    images = [read_image(record["file_name"]) for record in records]
    taken = {share: [] for share in shares}
    for image in images[:1] + images:
        for share in shares:
            segmenter.keep = share
            start = time.perf_counter()
            segmenter(image)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken[share].append(time.perf_counter() - start)
    # The first image warms up.
    return [statistics.median(times[1:]) for times in taken.values()]


def write(rows: list[dict], output: str) -> None:
    """Print the rows and write ``<output>.json`` and ``<output>.png``."""
    metrics = [key for key in rows[0] if key not in ("share", "milliseconds")]
    print("share     ms  " + "".join(f"{metric:>8}" for metric in metrics))
    for row in rows:
        scores = "".join(f"{row[metric]:8.1f}" for metric in metrics)
        print(f"{row['share']:5.2f} {row['milliseconds']:6.0f}  {scores}")
    with atomic_open(f"{output}.json") as file:
        file.write(json.dumps(rows, indent=1).encode() + b"\n")
    with atomic_open(f"{output}.png") as file:
        draw(rows, [metric for metric in SHOWN if metric in metrics]).savefig(file, dpi=120)


def draw(rows: list[dict], metrics: Sequence[str]) -> Figure:
    """Metrics by milliseconds, each point with its share."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for metric in metrics:
        points = [(row["milliseconds"], row[metric]) for row in rows]
        axes.plot(*zip(*points, strict=True), marker="o", label=metric)
    # Above and below in turn, because small shares take nearly the same time.
    for i, row in enumerate(rows):
        axes.annotate(
            f"{row['share']:g}",
            (row["milliseconds"], row[metrics[0]]),
            (0, -6 if i % 2 else 6),
            textcoords="offset points",
            ha="center",
            va="top" if i % 2 else "bottom",
            fontsize="small",
        )
    axes.set(xlabel="milliseconds per image", ylabel="score (%)", title="Each point: share kept")
    figure.legend(loc="outside right upper")
    axes.grid(alpha=0.3)
    return figure


if __name__ == "__main__":
    main()
