"""The project's targets, and whether this run meets them."""

from dataclasses import dataclass

from tabulate import tabulate

from bench import operators, parts, set_losses
from bench.models import FORWARD_BACKWARD
from bench.rows import BFLOAT16, FLOAT32, OURS, REFERENCE, Row, find

# The case that targets on a GPU are about: AFF-Tiny's first stage on a large image.
LARGE = "1024x2048"
TOKENS, CHANNELS, CLUSTERS = 131072, 64, 6
ATTENTION = f"cluster_attention, {TOKENS} tokens, 2 heads of 32, {CLUSTERS} clusters of 8"
SEARCH = f"knn, {TOKENS} to 32768 points, k = 4"


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
    row = find(rows, operators.SECTION, SEARCH, LARGE, operators.TREE)
    found.append(Target(f"{SEARCH}, against {operators.TREE}: speed", 2.0, True, row and row.ratio))
    what = "exponent of the backbone's time against tokens, 256x256 to 2048x4096"
    found.append(Target(what, 1.1, False, exponent))
    return found


def gpu_targets(limits: dict[str, float], rows: list[Row], _exponent: float | None) -> list[Target]:
    """All targets on a GPU; ``limits`` as :func:`bench.machine.limits` gives them."""

    def attention(direction: str, way: str = OURS, dtype: str = BFLOAT16) -> Row | None:
        what = f"{ATTENTION}, {direction}" if direction else ATTENTION
        return find(rows, operators.SECTION, what, LARGE, way, dtype)

    forward, backward = attention(""), attention(operators.BACKWARD)
    # q, k, v and the result in two bytes, indices in four.
    moved = TOKENS * (4 * CHANNELS * 2 + CLUSTERS * 4)
    share = moved / forward.seconds / limits["bytes"] if forward else None
    ratio = backward.seconds / forward.seconds if forward and backward else None
    label = f"{ATTENTION}, {BFLOAT16}"
    found = [
        Target(f"{label}: share of the copy bandwidth", 0.4, True, share),
        Target(f"{label}: backward / forward", 4.0, False, ratio),
    ]
    for dtype in (BFLOAT16, FLOAT32):
        for direction, speed in (("", 10.0), (operators.BOTH, 8.0)):
            row = attention(direction, operators.GATHER, dtype)
            label = f"{ATTENTION}, {dtype}, {direction or 'forward'}, against {operators.GATHER}"
            found.append(Target(f"{label}: speed", speed, True, row and row.ratio))
            found.append(Target(f"{label}: peak memory", 0.1, False, _inverse(row)))
    search = find(rows, operators.SECTION, SEARCH, LARGE, OURS)
    found.append(Target(f"{SEARCH}: ms", 0.3, False, _milliseconds(search)))
    what = parts.part_name("tiny", parts.BACKBONE_ALONE)
    for way, wanted in ((OURS, 8.0), (parts.GRAPH, 5.0)):
        row = find(rows, parts.PARTS, what, LARGE, way, BFLOAT16)
        how = "eager" if way == OURS else "captured"
        label = f"{what}, {LARGE}, {BFLOAT16}, {how}: ms"
        found.append(Target(label, wanted, False, _milliseconds(row)))
    for dtype in (BFLOAT16, FLOAT32):
        for part in parts.RESULTS.values():
            row = find(rows, parts.COMPARISON, part, LARGE, parts.THEIRS, dtype)
            label = f"AFF-Tiny against {parts.THEIRS}, {part}, {LARGE}, {dtype}: time"
            found.append(Target(label, 0.7, False, 1 / row.ratio if row and row.ratio else None))
    return found


def training_targets(rows: list[Row], _exponent: float | None) -> list[Target]:
    """All targets of what training does beside the model."""
    found = []
    for row in rows:
        if row.section == set_losses.SECTION and row.way == set_losses.PLAIN:
            label = f"criterion and matcher, {row.what}, {row.size}, against {row.way}: speed"
            found.append(Target(label, 1.5, True, row.ratio))
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
        lines,
        headers=["TARGETS (ratios, or as said)", "measured", "wanted", ""],
        disable_numparse=True,
    )


def _milliseconds(row: Row | None) -> float | None:
    return row and row.seconds * 1e3


def _inverse(row: Row | None) -> float | None:
    """Our peak memory as a share of the row's."""
    return 1 / row.memory_ratio if row and row.memory_ratio else None
