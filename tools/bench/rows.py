"""Rows of the report, and the table they are printed as."""

from collections.abc import Callable
from dataclasses import dataclass

from tabulate import SEPARATING_LINE, tabulate

from bench.measure import Figure

OURS, REFERENCE = "ours", "reference"
FLOAT32, BFLOAT16 = "float32", "bfloat16"


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
        flops, bytes: operations and bytes a second, counted as :mod:`bench.counts` does.
        flops_share, bytes_share: these as shares of the device's limits.
        note: what the way leaves out, or why it is missing.
        failed: it is missing because of an error.
        dtype: in which it computes.
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
    flops: float | None = None
    flops_share: float | None = None
    bytes: float | None = None
    bytes_share: float | None = None
    note: str = ""
    failed: bool = False
    dtype: str = FLOAT32


def text(size: tuple[int, int]) -> str:
    """(h, w) as ``hxw``."""
    return f"{size[0]}x{size[1]}"


def make_rows(
    section: str,
    size: tuple[int, int],
    figures: dict[str, dict[str, Figure]],
    reasons: dict[str, str],
    name: Callable[[str], str],
    *,
    notes: dict[str, str] | None = None,
    left_out: dict[str, str] | None = None,
    dtype: str = FLOAT32,
) -> list[Row]:
    """Rows of one group of ways, part by part.

    Args:
        section: heading.
        size: of the image.
        figures, reasons: of :func:`bench.measure.take_turns`, the ways called as in the table.
        name: from a part, "" for all, to the thing in the table.
        notes: by way.
        left_out: by way that was not tried, why.
        dtype: of all rows.
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
            row = Row(section, name(part), text(size), way, note=notes.get(way, ""), dtype=dtype)
            row.seconds, row.runs, row.peak = figure.seconds, figure.runs, figure.peak
            if ours is not None and way != OURS:
                row.ratio = figure.seconds / ours.seconds
                row.memory_ratio = figure.peak / ours.peak if figure.peak and ours.peak else None
            rows.append(row)
    missing = {**(left_out or {}), **reasons}
    what = name(next(iter(parts), ""))
    for way, reason in missing.items():
        failed = way in reasons
        rows.append(Row(section, what, text(size), way, note=reason, failed=failed, dtype=dtype))
    return rows


def find(
    rows: list[Row], section: str, what: str, size: str, way: str, dtype: str = FLOAT32
) -> Row | None:
    """The row with these, if it was measured."""
    wanted = (section, what, size, way, dtype)
    for row in rows:
        if (row.section, row.what, row.size, row.way, row.dtype) == wanted:
            return row if row.seconds is not None else None
    return None


def table(rows: list[Row]) -> str:
    """All rows as one table, section by section."""
    lines, section = [], None
    sections = list(dict.fromkeys(row.section for row in rows))
    for row in sorted(rows, key=lambda row: sections.index(row.section)):
        if row.section != section:
            section = row.section
            lines += [SEPARATING_LINE] if lines else []
            lines.append([section.upper()])
        cells = [row.what, row.size, row.dtype, row.way, row.runs or "", number(row.seconds, 1e3)]
        cells += [number(row.ratio, 1), number(row.peak, 2**-20), number(row.memory_ratio, 1)]
        lines.append([*cells, _remark(row)])
    heads = ["", "size", "type", "way", "runs", "ms", "ms / ours", "peak MiB", "MiB / ours", "note"]
    alignment = (*["left"] * 4, *["right"] * 5, "left")
    return tabulate(lines, headers=heads, colalign=alignment, disable_numparse=True)


def _remark(row: Row) -> str:
    rates = []
    if row.flops is not None:
        rates.append(f"{row.flops / 1e9:.0f} GFLOP/s ({row.flops_share:.0%} of limit)")
    if row.bytes is not None:
        rates.append(f"{row.bytes / 1e9:.1f} GB/s ({row.bytes_share:.0%})")
    note = f"FAILED: {row.note}" if row.failed else row.note
    return ", ".join([*rates, note] if note else rates)


def number(value: float | None, scale: float) -> str:
    """Three figures or more, nothing for None."""
    if value is None:
        return ""
    value *= scale
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}"
