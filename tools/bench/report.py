"""The report of a run: JSON and a table beside it, whole after every row."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from bench.models import SURE_QUERIES
from bench.rows import Row, table
from bench.targets import Target, target_table

LEGEND = f"""\
ms: median of runs, on a GPU by its own events, its cache cleared before each. Operators: without
the host's part there; the share of a limit is that of a matrix product, or of a copy, in the same
run, counting every argument and result once. Models: with the host's part.
peak MiB: above what the process (on a GPU, its allocator), with the model and the optimizer's state
loaded, held before the call, inputs not counted.
Operators: arguments of a run of AFF-Tiny. Parts: of one run of the whole model, which gives
semantic, panoptic and instance results; against transformers, panoptic results alone. In every
model {SURE_QUERIES} queries are made sure of a class, or there would be nothing to post-process.
bfloat16: operators with all features in it, models under autocast; float32: as torch computes it by
default. Training step: forward, losses of {SURE_QUERIES} objects, backward, optimizer."""
TRAINING_LEGEND = """\
Data loading: means over drawn images of the size of the dataset's, augmented by its recipe; a stage
leaves out those inside of it. One worker process: as training gets images, with the way from
process to process. Step and losses: ms, median of runs; peak MiB as above what the process (on a
GPU, its allocator) held before the call. The parts of a step are waited for one by one."""


class Report:
    """Rows as they come, and what follows from them.

    Args:
        head: date, versions and machine.
        limits: of the machine.
        judge: from rows and the exponent of the curve to the targets.
        output: the JSON file; the table is beside it.
        legend: what the columns mean.
    """

    def __init__(
        self,
        head: dict,
        limits: dict[str, float],
        judge: Callable[[list[Row], float | None], list[Target]],
        output: Path,
        legend: str = LEGEND,
    ):
        self.rows: list[Row] = []
        self.exponent: float | None = None
        self.output = output
        self._legend = legend
        self._head, self._limits, self._judge = head, limits, judge
        self._started = time.perf_counter()
        output.parent.mkdir(parents=True, exist_ok=True)

    @property
    def beginning(self) -> str:
        """What is known before the first row."""
        lines = [f"{name}: {value}" for name, value in self._head.items() if name != "operators"]
        lines += [f"{name}: {path}" for name, path in self._head["operators"].items()]
        rates = {
            name: rate for name, rate in self._limits.items() if name not in ("flops", "bytes")
        }
        products = ", ".join(f"{rate / 1e9:.0f} GFLOP/s by {name}" for name, rate in rates.items())
        lines.append(f"limits: {products}; copy {self._limits['bytes'] / 1e9:.1f} GB/s")
        return "\n".join(lines)

    @property
    def results(self) -> str:
        """The table of rows and, where there are any, that of targets."""
        reached = self._judge(self.rows, self.exponent)
        parts = [table(self.rows), self._legend, *([target_table(reached)] if reached else [])]
        return "\n\n".join(parts) + "\n"

    def add(self, row: Row) -> None:
        """Take a row and write everything."""
        self.rows.append(row)
        self.write()

    def write(self) -> None:
        """Write both files, each of which is whole at any time."""
        reached = self._judge(self.rows, self.exponent)
        content = self._head | {
            "seconds": time.perf_counter() - self._started,
            "limits": self._limits,
            "exponent": self.exponent,
            "rows": [asdict(row) for row in self.rows],
            "targets": [{**asdict(target), "verdict": target.verdict} for target in reached],
        }
        _replace(self.output, json.dumps(content, indent=2) + "\n")
        _replace(self.output.with_suffix(".txt"), f"{self.beginning}\n\n{self.results}")


def _replace(path: Path, content: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(content, encoding="utf-8")
    os.replace(part, path)
