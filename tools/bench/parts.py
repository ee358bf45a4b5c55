"""Rows of the model's parts, and of the whole model against Mask2Former with a Swin-Tiny."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from importlib.util import find_spec

import torch

from bench.measure import Figure, Way, best_device, free_memory, lazily, take_turns
from bench.models import (
    FORWARD_BACKWARD,
    LOGITS,
    PANOPTIC_ONLY,
    WHOLE,
    mask2former,
    mask2former_model,
    mask2former_of,
    our_backbone,
    our_parts,
    our_training,
    our_training_state,
    parts_of,
    steps_of,
    sure_model,
)
from bench.rows import BFLOAT16, FLOAT32, OURS, REFERENCE, Row, make_rows
from bench.worker import Worker, working

PARTS, COMPARISON = "parts of the model", "AFF-Tiny against transformers"
THEIRS, GRAPH = "Mask2Former Swin-Tiny", f"{OURS}, as CUDA graph"
BACKBONE_ALONE = "backbone alone"
# Parts that both models have, and what they give.
RESULTS = {LOGITS: LOGITS, WHOLE: "image to panoptic result"}
DTYPES = {FLOAT32: torch.float32, BFLOAT16: torch.bfloat16}
# Seconds after which no new round starts, at the smallest size and at larger ones; the comparison
# always gets all its runs.
PATIENCE, LESS_PATIENCE, ENDLESS = 60.0, 25.0, 1e6
# Seconds after which a way gets no more turns on a GPU.
SHARE = 1.0
_NO_TRANSFORMERS = "transformers is not installed; `make bench` tries to install it"


def part_rows(variant: str, sizes: Sequence[tuple[int, int]], runs: int) -> Iterator[Row]:
    """Backbone, head, post-processing and whole model, and the backbone's forward + backward.

    Ours and the reference run in processes of their own.
    """
    reference_bytes = 0.0
    for size in sorted(sizes):
        patience = PATIENCE if size == min(sizes) else LESS_PATIENCE
        with working(_workers(our_parts, variant, size, (OURS, REFERENCE))) as ways:
            figures, failed = take_turns(ways, runs, patience)
        yield from _rows(variant, size, figures, failed)

        paths, left_out = [OURS, REFERENCE], {}
        needed = reference_bytes * size[0] * size[1]
        if needed > free_memory(best_device()):
            paths.remove(REFERENCE)
            left_out[REFERENCE] = f"left out: needs about {needed / 2**30:.0f} GB"
        with working(_workers(our_training, variant, size, paths)) as ways:
            figures, failed = take_turns(ways, runs, patience)
        if REFERENCE in figures:
            reference_bytes = figures[REFERENCE][FORWARD_BACKWARD].peak / (size[0] * size[1])
        yield from _rows(variant, size, figures, failed, left_out=left_out)


def _workers(
    build: Callable[..., Way], variant: str, size: tuple[int, int], paths: Sequence[str]
) -> dict[str, Worker]:
    return {
        path: Worker(build, reference=path == REFERENCE, variant=variant, size=size)
        for path in paths
    }


def _rows(
    variant: str,
    size: tuple[int, int],
    figures: dict[str, dict[str, Figure]],
    failed: dict[str, str],
    **options: object,
) -> list[Row]:
    kept = {
        way: {part: figure for part, figure in found.items() if part != LOGITS}
        for way, found in figures.items()
    }
    return make_rows(PARTS, size, kept, failed, partial(part_name, variant), **options)


def part_name(variant: str, part: str) -> str:
    """A variant's part, or the variant itself, in the table."""
    return ", ".join(filter(None, (f"AFF-{variant.capitalize()}", part)))


def gpu_part_rows(variant: str, size: tuple[int, int], runs: int) -> Iterator[Row]:
    """On a GPU: backbone, head, post-processing and whole model in every type."""
    model = sure_model(variant)
    for dtype, exact in DTYPES.items():
        ways = {OURS: lazily(partial(parts_of, model, size, exact))}
        yield from _rows(variant, size, *take_turns(ways, runs, PATIENCE, SHARE), dtype=dtype)


def gpu_step_rows(variant: str, size: tuple[int, int], runs: int) -> Iterator[Row]:
    """On a GPU: steps of training in every type."""
    model, optimizer = our_training_state(variant)
    for dtype, exact in DTYPES.items():
        ways = {OURS: lazily(partial(steps_of, model, optimizer, size, exact))}
        yield from _rows(variant, size, *take_turns(ways, runs, PATIENCE, SHARE), dtype=dtype)


def gpu_backbone_rows(variant: str, size: tuple[int, int], runs: int) -> Iterator[Row]:
    """On a GPU: the backbone alone in bfloat16, called and replayed."""
    called, replayed = our_backbone(variant, size, DTYPES[BFLOAT16])
    figures, failed = take_turns({OURS: called, GRAPH: replayed}, runs, PATIENCE, SHARE)
    name = part_name(variant, BACKBONE_ALONE)
    yield from make_rows(PARTS, size, figures, failed, lambda _: name, dtype=BFLOAT16)


def comparison_rows(size: tuple[int, int], runs: int) -> list[Row]:
    """AFF-Tiny and Mask2Former with a Swin-Tiny backbone on the same image, panoptic only."""
    workers = {OURS: Worker(our_parts, variant="tiny", size=size, opts=PANOPTIC_ONLY)}
    left_out = {}
    if find_spec("transformers") is None:
        left_out[THEIRS] = _NO_TRANSFORMERS
    else:
        workers[THEIRS] = Worker(mask2former, size=size)
    with working(workers) as ways:
        figures, failed = take_turns(ways, runs, ENDLESS)
    return _compared(size, figures, failed, left_out=left_out)


def gpu_comparison_rows(size: tuple[int, int], runs: int) -> Iterator[Row]:
    """The same on a GPU, where both live in one process, in every type."""
    ours, theirs = cache(partial(sure_model, "tiny", PANOPTIC_ONLY)), cache(mask2former_model)
    for dtype, exact in DTYPES.items():
        ways = {OURS: lazily(lambda exact=exact: parts_of(ours(), size, exact))}
        left_out = {}
        if find_spec("transformers") is None:
            left_out[THEIRS] = _NO_TRANSFORMERS
        else:
            ways[THEIRS] = lazily(lambda exact=exact: mask2former_of(theirs(), size, exact))
        figures, failed = take_turns(ways, runs, PATIENCE, SHARE)
        yield from _compared(size, figures, failed, left_out=left_out, dtype=dtype)


def _compared(
    size: tuple[int, int],
    figures: dict[str, dict[str, Figure]],
    failed: dict[str, str],
    **options: object,
) -> list[Row]:
    shared = {
        way: {what: found[part] for part, what in RESULTS.items()} for way, found in figures.items()
    }
    return make_rows(COMPARISON, size, shared, failed, lambda part: part or WHOLE, **options)
