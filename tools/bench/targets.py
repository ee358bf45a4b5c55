"""The project's targets, and whether this run meets them."""

from dataclasses import dataclass

from tabulate import tabulate

from bench import operators, parts
from bench.models import FORWARD_BACKWARD
from bench.rows import REFERENCE, Row, find


@dataclass(frozen=True)
class Target:
    """One target: ``measured`` is None where the run did not measure it.

    Attributes:
        what: the thing.
        wanted: the bound.
        least: the bound is a lower one.
        measured: figure of the run.
    """

    what: str
    wanted: float
    least: bool
    measured: float | None

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        met = self.measured >= self.wanted if self.least else self.measured <= self.wanted
        return "met" if met else "not met"


def targets(rows: list[Row], exponent: float | None) -> list[Target]:
    """All targets, with the ratios of the rows; 2.0 is twice as fast."""
    found = []
    for size in ("512x512", "1024x2048"):
        for what in parts.RESULTS.values():
            row = find(rows, parts.COMPARISON, what, size, parts.THEIRS)
            label = f"AFF-Tiny against {parts.THEIRS}, {what}, {size}"
            found.append(Target(f"{label}: speed", 2.0, True, row and row.ratio))
            found.append(Target(f"{label}: peak memory", 0.7, False, _inverse(row)))
    row = find(rows, parts.PARTS, "AFF-Tiny, backbone", "512x512", REFERENCE)
    label = "AFF-Tiny backbone against the reference, 512x512"
    found.append(Target(f"{label}, forward: speed", 4.0, True, row and row.ratio))
    what = f"AFF-Tiny, {FORWARD_BACKWARD}"
    row = find(rows, parts.PARTS, what, "512x512", REFERENCE)
    label += ", forward + backward"
    found.append(Target(f"{label}: speed", 2.5, True, row and row.ratio))
    found.append(Target(f"{label}: peak memory", 1 / 3, False, _inverse(row)))
    what = "knn, 131072 to 32768 points, k = 4"
    row = find(rows, operators.SECTION, what, "1024x2048", operators.TREE)
    found.append(Target(f"{what}, against {operators.TREE}: speed", 2.0, True, row and row.ratio))
    what = "exponent of the backbone's time against tokens, 256x256 to 2048x4096"
    found.append(Target(what, 1.1, False, exponent))
    return found


def target_table(found: list[Target]) -> str:
    """Targets as a table."""
    lines = [
        [
            target.what,
            "" if target.measured is None else f"{target.measured:.2f}",
            f"{'at least' if target.least else 'at most'} {target.wanted:.2f}",
            target.verdict,
        ]
        for target in found
    ]
    return tabulate(
        lines, headers=["TARGETS (ratios)", "measured", "wanted", ""], disable_numparse=True
    )


def _inverse(row: Row | None) -> float | None:
    """Our peak memory as a share of the row's."""
    return 1 / row.memory_ratio if row and row.memory_ratio else None
