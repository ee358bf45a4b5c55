"""Rows of the report, and the table they are printed as."""

from collections.abc import Callable
from dataclasses import dataclass

from tabulate import SEPARATING_LINE, tabulate

from bench.measure import Figure

OURS, REFERENCE = "ours", "reference"


@dataclass
class Row:
    """One way of doing one thing; ratios are to ours in the same run.

    Attributes:
        section: heading of the table.
        what: the thing, with its sizes.
        size: of the image, as ``512x512``.
        way: who does it.
        seconds: median, None where it could not be measured.
        runs: how many it is the median of.
        peak: bytes above those in use before.
        ratio, memory_ratio: to ours.
        note: what the way leaves out, or why it is missing.
    """

    section: str
    what: str
    size: str
    way: str
    seconds: float | None = None
    runs: int = 0
    peak: int | None = None
    ratio: float | None = None
    memory_ratio: float | None = None
    note: str = ""


def text(size: tuple[int, int]) -> str:
    """(h, w) as ``hxw``."""
    return f"{size[0]}x{size[1]}"


def make_rows(
    section: str,
    size: tuple[int, int],
    figures: dict[str, dict[str, Figure]],
    reasons: dict[str, str],
    name: Callable[[str], str],
    notes: dict[str, str] | None = None,
) -> list[Row]:
    """Rows of one group of ways, part by part.

    Args:
        section: heading.
        size: of the image.
        figures, reasons: of :func:`bench.measure.take_turns`, the ways called as in the table.
        name: from a part to the thing in the table.
        notes: by way.
    """
    notes = notes or {}
    rows = []
    parts = dict.fromkeys(part for found in figures.values() for part in found)
    for part in parts:
        ours = figures.get(OURS, {}).get(part)
        for way, found in figures.items():
            if part not in found:
                continue
            figure = found[part]
            row = Row(section, name(part), text(size), way, note=notes.get(way, ""))
            row.seconds, row.runs, row.peak = figure.seconds, figure.runs, figure.peak
            if ours is not None and way != OURS:
                row.ratio = figure.seconds / ours.seconds
                row.memory_ratio = figure.peak / ours.peak if figure.peak and ours.peak else None
            rows.append(row)
    for way, reason in reasons.items():
        rows.append(Row(section, name(next(iter(parts), "")), text(size), way, note=reason))
    return rows


def find(rows: list[Row], section: str, what: str, size: str, way: str) -> Row | None:
    """The row with these, if it was measured."""
    for row in rows:
        if (row.section, row.what, row.size, row.way) == (section, what, size, way):
            return row if row.seconds is not None else None
    return None


def table(rows: list[Row]) -> str:
    """All rows as one table, section by section."""
    lines, section = [], None
    for row in rows:
        if row.section != section:
            section = row.section
            lines += [SEPARATING_LINE] if lines else []
            lines.append([section.upper()])
        cells = [row.what, row.size, row.way, row.runs or "", number(row.seconds, 1e3)]
        cells += [number(row.ratio, 1), number(row.peak, 2**-20), number(row.memory_ratio, 1)]
        lines.append([*cells, row.note])
    heads = ["", "size", "way", "runs", "ms", "ms / ours", "peak MiB", "MiB / ours", "note"]
    alignment = ("left", "left", "left", "right", "right", "right", "right", "right", "left")
    return tabulate(lines, headers=heads, colalign=alignment, disable_numparse=True)


def number(value: float | None, scale: float) -> str:
    """Three figures or more, nothing for None."""
    if value is None:
        return ""
    value *= scale
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}"
