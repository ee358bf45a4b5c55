"""A picture of a training run: losses, learning rate and metrics over iterations."""

import json
import os
from collections import defaultdict

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Series of one curve: iterations and values.
Series = list[tuple[int, float]]

# Panels: title, and the scalars drawn in it with their labels.
PANELS = (
    ("Total loss, all layers", {"total_loss": "total"}),
    (
        "Loss of the last layer, weighted",
        {"loss_ce": "class", "loss_mask": "mask", "loss_dice": "dice"},
    ),
    ("Learning rate", {"lr": "last"}),
    (
        "Evaluation (%)",
        {
            "panoptic_seg/PQ": "PQ",
            "segm/AP": "AP",
            "sem_seg/mIoU": "mIoU",
            "sem_seg/IoU": "mIoU",
        },
    ),
)


def read_metrics(path: str) -> dict[str, Series]:
    """Read the file of Detectron2's ``JSONWriter``.

    A run that was resumed, or started again in the same folder, appends to the file: where
    iterations go back, what the run before had from there on is dropped.

    Args:
        path: a file with one JSON object a line.

    Returns:
        Per scalar its (iteration, value) pairs, by increasing iteration.
    """
    series: dict[str, Series] = defaultdict(list)
    last = -1
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue  # cut short by a kill
            iteration = row.pop("iteration")
            if iteration <= last:
                # Scores at the iteration itself may be those of the checkpoint gone on from.
                for key, points in series.items():
                    kept = iteration - (key in row)
                    series[key] = [point for point in points if point[0] <= kept]
            last = iteration
            for key, value in row.items():
                series[key].append((iteration, value))
    return {key: points for key, points in series.items() if points}


def end_last_line(path: str) -> None:
    """End a line that a kill has cut short, so that what is appended is a line of its own."""
    with open(path, "ab+") as file:
        if file.tell() == 0:
            return
        file.seek(-1, os.SEEK_END)
        if file.read() != b"\n":
            file.write(b"\n")


def plot_curves(metrics_file: str, picture: str) -> bool:
    """Draw the curves of a ``metrics.json``.

    Args:
        metrics_file: file of Detectron2's ``JSONWriter``.
        picture: path of the picture to write; the suffix decides its format.

    Returns:
        Whether there was anything to draw.
    """
    series = read_metrics(metrics_file)
    panels = curves_of(series)
    if not panels:
        return False
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6.4 * columns, 3.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for index, (title, curves) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, index)
        for label, points in curves.items():
            iterations, values = zip(*points, strict=True)
            marker = "o" if len(points) < 30 else None
            axes.plot(iterations, values, marker=marker, ms=4, label=f"{label} {values[-1]:.3g}")
        axes.set_title(title)
        axes.set_xlabel("iteration")
        axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
        axes.set_ylim(0, axes.get_ylim()[1])
        axes.set_xlim(0, 1.02 * max(points[-1][0] for points in curves.values()) + 1)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=110)
    return True


def curves_of(series: dict[str, Series]) -> list[tuple[str, dict[str, Series]]]:
    """The panels of :data:`PANELS` that have curves; for Detectron2's models, its losses."""
    found = []
    for title, scalars in PANELS:
        if "loss_ce" in scalars and "loss_ce" not in series:
            names = sorted(name for name in series if name.startswith("loss_"))
            title, scalars = "Losses", {name: name.removeprefix("loss_") for name in names}
        elif "segm/AP" in scalars and "segm/AP" not in series:
            scalars = {**scalars, "bbox/AP": "AP_box"}
        curves = {label: series[key] for key, label in scalars.items() if key in series}
        if curves:
            found.append((title, curves))
    return found
