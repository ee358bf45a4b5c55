"""Rows of the operators: ours, the reference, and what one would pick instead."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from aff_seg import ops
from aff_seg.ops import reference
from bench import instead
from bench.counts import Work, backward_work, forward_work
from bench.machine import highest
from bench.measure import Way, best_device, lazily, single, take_turns
from bench.models import autocast, start_libraries
from bench.recorded import Case, record
from bench.rows import OURS, REFERENCE, Row, make_rows
from bench.worker import Worker, working

SECTION = "operators"
TREE, DISTANCES, GATHER, FLEX = "cKDTree", "cdist + topk", "gather + einsum", "flex_attention"
NOTES = {
    TREE: "tree built anew, all cores",
    GATHER: "no blank token",
    FLEX: "no blank token; compiled before",
}
BACKWARD, BOTH = "backward", "forward + backward"
# Of whose backward a CPU, which is slow at it, measures the time.
TRAINED_ON_CPU = ("cluster_attention", "point_conv")
WITHOUT_BLANK = 8
# Of the two attentions that are measured, flex_attention gets that of the first stage.
FLEX_HEADS = 2
PATIENCE, FLEX_LIMIT = 10.0, 180.0
# Seconds after which a way gets no more turns on a GPU.
SHARE = 0.5


def operator_rows(
    size: tuple[int, int], runs: int, limits: dict[str, float], with_flex: bool
) -> Iterator[Row]:
    """All operators at the sizes that AFF-Tiny gives them on an image of ``size``, in float32.

    Args:
        size: of the image.
        runs: runs of each.
        limits: of the machine, see :func:`bench.machine.limits`.
        with_flex: compile flex_attention too, which takes half a minute.
    """
    for case in record(size):
        ways = _forward_ways(case)
        if with_flex and _for_flex(case):
            with working({FLEX: Worker(flex_way, limit=FLEX_LIMIT, size=size)}) as worker:
                rows = _measure(case, "", size, runs, {**ways, **worker})
        else:
            rows = _measure(case, "", size, runs, ways)
        if case.operator not in TRAINED_ON_CPU:
            yield from rows
            continue
        yield from _rated(rows, case, forward_work(case), limits)
        rows = _measure(case, BOTH, size, runs, _both_ways(case))
        yield from _rated(rows, case, forward_work(case) + backward_work(case), limits)


def gpu_operator_rows(
    dtype: torch.dtype,
    size: tuple[int, int],
    runs: int,
    limits: dict[str, float],
    searches: bool,
) -> Iterator[Row]:
    """On a GPU: all operators, forward and backward, with features in ``dtype``.

    Args:
        dtype: float32, or bfloat16 for a run under autocast.
        size, runs, limits: as above.
        searches: also those that look for neighbours, whose positions have one type in all runs.
    """
    cases = record(size, dtype)
    start_libraries()
    for case in (case for case in cases if case.operator != "knn"):
        forward, backward = forward_work(case), backward_work(case)
        for direction, ways, work in (
            ("", _forward_ways(case), forward),
            (BACKWARD, {OURS: lazily(partial(_backward_way, case))}, backward),
            (BOTH, _both_ways(case), forward + backward),
        ):
            rows = _measure(case, direction, size, runs, ways, SHARE)
            yield from _rated(rows, case, work, limits)
    for case in (case for case in cases if searches and case.operator == "knn"):
        rows = _measure(case, "", size, runs, _forward_ways(case), SHARE)
        yield from _rated(rows, case, forward_work(case), limits)


def gpu_flex_rows(dtype: torch.dtype, size: tuple[int, int], runs: int) -> Iterator[Row]:
    """On a GPU: flex_attention on the first stage's attention, beside ours once more."""
    (case,) = (case for case in record(size, dtype) if _for_flex(case))
    args, device = case.args[:WITHOUT_BLANK], best_device()

    def forward() -> Way:
        with torch.inference_mode():
            call = instead.flex(*args)
            call()  # compiles
        return single(torch.inference_mode()(call), device, queued=True)

    def both() -> Way:
        call = instead.flex(*args, backward=True)
        call()
        return single(call, device, queued=True)

    for direction, ours, theirs in (
        ("", _forward_ways(case)[OURS], forward),
        (BOTH, _both_ways(case)[OURS], both),
    ):
        rows = _measure(case, direction, size, runs, {OURS: ours, FLEX: lazily(theirs)}, SHARE)
        yield from (row for row in rows if row.way == FLEX)


def flex_way(size: tuple[int, int]) -> Way:
    """flex_attention on the first stage's attention."""
    (case,) = (case for case in record(size) if _for_flex(case))
    with torch.inference_mode():
        call = instead.flex(*case.args[:WITHOUT_BLANK])
        call()  # compiles
    return single(torch.inference_mode()(call), best_device())


def _for_flex(case: Case) -> bool:
    return case.operator == "cluster_attention" and case.args[0].shape[2] == FLEX_HEADS


def _calls(case: Case) -> dict[str, Callable[..., object]]:
    """Functions of the case's arguments."""
    calls = {OURS: getattr(ops, case.operator), REFERENCE: getattr(reference, case.operator)}
    if case.operator == "knn":
        if case.args[0].device.type == "cpu":
            calls[TREE] = instead.tree_knn
        if case.dtype == torch.float32:  # once is enough: it takes half a minute on a CPU
            calls[DISTANCES] = instead.cdist_knn
    if case.operator == "cluster_attention":
        calls[GATHER] = lambda *args, **_: instead.gathered_attention(*args[:WITHOUT_BLANK])
    return calls


def _forward_ways(case: Case) -> dict[str, Way]:
    def way(call: Callable[..., object]) -> Way:
        @torch.inference_mode()
        def run() -> object:
            with _as_recorded(case):
                return call(*case.args, **case.kwargs)

        return single(run, best_device(), queued=True)

    return {name: way(call) for name, call in _calls(case).items()}


def _both_ways(case: Case) -> dict[str, Way]:
    def way(call: Callable[..., Tensor]) -> Way:
        args, leaves = _leaves(case)

        def run() -> object:
            with _as_recorded(case):
                out = call(*args, **case.kwargs)
            # The blank token is not an argument of all.
            return torch.autograd.grad(out, leaves, torch.ones_like(out), allow_unused=True)

        return single(run, best_device(), queued=True)

    return {name: way(call) for name, call in _calls(case).items()}


def _backward_way(case: Case) -> Way:
    """Ours; one forward serves all runs."""
    args, leaves = _leaves(case)
    with _as_recorded(case):
        out = getattr(ops, case.operator)(*args, **case.kwargs)
    gradient = torch.ones_like(out)
    return single(
        lambda: torch.autograd.grad(out, leaves, gradient, retain_graph=True),
        best_device(),
        queued=True,
    )


def _leaves(case: Case) -> tuple[list, list[Tensor]]:
    """Arguments, some of which get gradients; and those."""
    args = list(case.args)
    for i in case.learned:
        args[i] = args[i].detach().requires_grad_()
    return args, [args[i] for i in case.learned]


def _as_recorded(case: Case) -> torch.autocast:
    """Mixed precision, if the call comes from such a run."""
    return autocast(torch.bfloat16 if case.dtype == torch.bfloat16 else torch.float32)


def _measure(
    case: Case,
    direction: str,
    size: tuple[int, int],
    runs: int,
    ways: dict[str, Way],
    share: float = math.inf,
) -> list[Row]:
    """Rows of a case; ``direction`` is empty for forward."""
    figures, reasons = take_turns(ways, runs, PATIENCE, share)
    what = f"{case.label}, {direction}" if direction else case.label
    dtype = str(case.dtype).removeprefix("torch.")
    return make_rows(SECTION, size, figures, reasons, lambda _: what, notes=NOTES, dtype=dtype)


def _rated(rows: list[Row], case: Case, work: Work, limits: dict[str, float]) -> list[Row]:
    """Say how near to the machine's limits ours comes; return all rows."""
    for row in rows:
        if row.way != OURS or row.seconds is None:
            continue
        row.bytes = work.bytes / row.seconds
        row.bytes_share = row.bytes / limits["bytes"]
        if work.operations is not None:
            row.flops = work.operations / row.seconds
            row.flops_share = row.flops / highest(limits, case.dtype)
    return rows
