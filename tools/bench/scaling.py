"""Time of the backbone against the number of tokens, and its plot."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
from torch import Tensor

from bench.measure import best_device, single, take_turns
from bench.models import our_model
from bench.rows import OURS, Row, text

SECTION = "time against tokens"
WHAT = "AFF-Tiny, backbone"
SIZES = (
    *((256, 256), (512, 512), (512, 1024), (1024, 1024)),
    *((1024, 2048), (2048, 2048), (2048, 4096)),
)
# Seconds after which the sizes, which take turns, begin no new round.
PATIENCE = 60.0


def scaling_rows(sizes: Sequence[tuple[int, int]], runs: int) -> list[Row]:
    """The backbone of AFF-Tiny on images of all sizes."""
    device = best_device()
    backbone = our_model("tiny").backbone

    @torch.inference_mode()
    def run(images: Tensor) -> None:
        backbone(images)

    ways = {
        text(size): single(partial(run, torch.randn(1, 3, *size, device=device)), device)
        for size in sizes
    }
    figures, _ = take_turns(ways, runs, PATIENCE)
    return [
        Row(SECTION, WHAT, size, OURS, found[""].seconds, found[""].runs, found[""].peak)
        for size, found in figures.items()
    ]


def tokens(row: Row) -> int:
    """Tokens of the first stage, one for every 4x4 pixels."""
    height, width = map(int, row.size.split("x"))
    return height * width // 16


def fit_exponent(counts: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Exponent and factor of ``seconds = factor * count ** exponent``, by least squares of logs.

    Args:
        counts: at least two different positive numbers.
        seconds: as many positive numbers.
    """
    exponent, log_factor = np.polyfit(np.log(counts), np.log(seconds), 1)
    return float(exponent), float(np.exp(log_factor))


def plot(rows: list[Row], machine: str, path: Path) -> float:
    """Draw the rows of :func:`scaling_rows` into ``path``; return the exponent."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    counts = [tokens(row) for row in rows]
    seconds = [row.seconds for row in rows]
    exponent, factor = fit_exponent(counts, seconds)
    line = np.array([min(counts), max(counts)], dtype=float)
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    axes.loglog(counts, seconds, "o", label="median of runs")
    fitted = f"fit: time ~ tokens$^{{{exponent:.2f}}}$"
    axes.loglog(line, factor * line**exponent, "-", label=fitted)
    for row, count in zip(rows, counts, strict=True):
        axes.annotate(
            row.size, (count, row.seconds), xytext=(8, -8), textcoords="offset points", fontsize=8
        )
    axes.set_xlabel("tokens of the first stage")
    axes.set_ylabel("time of one forward pass [s]")
    axes.set_title(f"AFF-Tiny backbone, float32, batch 1\n{machine}", fontsize=10)
    axes.grid(True, which="both", alpha=0.3)
    axes.margins(x=0.12)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return exponent
