"""Rows of the model's parts, and of the whole model against Mask2Former with a Swin-Tiny."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec

from bench.measure import Way, best_device, free_memory, take_turns
from bench.models import (
    FORWARD_BACKWARD,
    LOGITS,
    PANOPTIC_ONLY,
    WHOLE,
    mask2former,
    our_parts,
    our_training,
)
from bench.rows import OURS, REFERENCE, Row, make_rows
from bench.worker import Worker, working

PARTS, COMPARISON = "parts of the model", "AFF-Tiny against transformers"
THEIRS = "Mask2Former Swin-Tiny"
# Parts that both models have, and what they give.
RESULTS = {LOGITS: LOGITS, WHOLE: "image to panoptic result"}
# Seconds after which no new round starts, at the smallest size and at larger ones; the comparison
# always gets all its runs.
PATIENCE, LESS_PATIENCE, ENDLESS = 60.0, 25.0, 1e6


def part_rows(variant: str, sizes: Sequence[tuple[int, int]], runs: int) -> list[Row]:
    """Backbone, head, post-processing and whole model, and the backbone's forward + backward.

    Ours and the reference run in processes of their own.
    """
    rows, reference_bytes = [], 0.0
    for size in sorted(sizes):
        patience = PATIENCE if size == min(sizes) else LESS_PATIENCE
        with working(_workers(our_parts, variant, size, (OURS, REFERENCE))) as ways:
            rows += _rows(variant, size, take_turns(ways, runs, patience))

        paths, reasons = [OURS, REFERENCE], {}
        needed = reference_bytes * size[0] * size[1]
        if needed > free_memory(best_device()):
            paths.remove(REFERENCE)
            reasons[REFERENCE] = f"left out: needs about {needed / 2**30:.0f} GB"
        with working(_workers(our_training, variant, size, paths)) as ways:
            figures, failed = take_turns(ways, runs, patience)
        if REFERENCE in figures:
            reference_bytes = figures[REFERENCE][FORWARD_BACKWARD].peak / (size[0] * size[1])
        rows += _rows(variant, size, (figures, {**reasons, **failed}))
    return rows


def _workers(
    build: Callable[..., Way], variant: str, size: tuple[int, int], paths: Sequence[str]
) -> dict[str, Worker]:
    return {
        path: Worker(build, reference=path == REFERENCE, variant=variant, size=size)
        for path in paths
    }


def _rows(variant: str, size: tuple[int, int], measured: tuple[dict, dict]) -> list[Row]:
    figures, reasons = measured
    kept = {
        way: {part: figure for part, figure in found.items() if part != LOGITS}
        for way, found in figures.items()
    }
    return make_rows(PARTS, size, kept, reasons, lambda part: f"AFF-{variant.capitalize()}, {part}")


def comparison_rows(size: tuple[int, int], runs: int) -> list[Row]:
    """AFF-Tiny and Mask2Former with a Swin-Tiny backbone on the same image, panoptic only."""
    workers = {OURS: Worker(our_parts, variant="tiny", size=size, opts=PANOPTIC_ONLY)}
    reasons = {}
    if find_spec("transformers") is None:
        reasons[THEIRS] = "transformers is not installed; `make bench` tries to install it"
    else:
        workers[THEIRS] = Worker(mask2former, size=size)
    with working(workers) as ways:
        figures, failed = take_turns(ways, runs, ENDLESS)
    figures = {
        way: {what: found[part] for part, what in RESULTS.items()} for way, found in figures.items()
    }
    return make_rows(COMPARISON, size, figures, {**reasons, **failed}, str)
