"""Rows of the operators: ours, the reference, and what one would pick instead."""

from collections.abc import Callable

import torch
from torch import Tensor

from aff_seg import ops
from aff_seg.ops import reference
from bench import instead
from bench.counts import bytes_moved, operations
from bench.measure import Way, best_device, single, take_turns
from bench.recorded import Case, record
from bench.rows import OURS, REFERENCE, Row, find, make_rows, text
from bench.worker import Worker, working

SECTION = "operators"
TREE, DISTANCES, GATHER, FLEX = "cKDTree", "cdist + topk", "gather + einsum", "flex_attention"
NOTES = {
    TREE: "tree built anew, all cores",
    GATHER: "no blank token",
    FLEX: "no blank token; compiled before",
}
# Arguments that get gradients; those that the attentions picked instead take.
LEARNED = {"cluster_attention": (0, 1, 2, 6, 7, 8, 9), "point_conv": (0, 1, 6, 7, 8, 9)}
WITHOUT_BLANK = 8
# Of the two attentions that are measured, flex_attention gets that of the first stage.
FLEX_HEADS = 2
PATIENCE, FLEX_LIMIT = 10.0, 180.0


def operator_rows(
    size: tuple[int, int], runs: int, limits: dict[str, float], with_flex: bool
) -> list[Row]:
    """All operators at the sizes that AFF-Tiny gives them on an image of ``size``.

    Args:
        size: of the image.
        runs: runs of each.
        limits: of the machine, see :func:`bench.machine.limits`.
        with_flex: compile flex_attention too, which takes half a minute.
    """
    rows, device = [], best_device()
    for case in record(size):
        calls = _calls(case)
        forward = {
            name: single(_forward(call, case), best_device()) for name, call in calls.items()
        }
        if with_flex and _for_flex(case):
            with working({FLEX: Worker(flex_way, limit=FLEX_LIMIT, size=size)}) as worker:
                rows += _measure(case.label, size, runs, {**forward, **worker})
        else:
            rows += _measure(case.label, size, runs, forward)
        if case.operator in LEARNED:
            both = {name: single(_both(call, case), device) for name, call in calls.items()}
            what = f"{case.label}, forward + backward"
            rows += _measure(what, size, runs, both)
            for label, backward in ((case.label, False), (what, True)):
                _note_rates(find(rows, SECTION, label, text(size), OURS), case, backward, limits)
    return rows


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
        calls[TREE] = instead.tree_knn
        if case.args[0].dtype == torch.float32:  # once is enough: it takes half a minute
            calls[DISTANCES] = instead.cdist_knn
    if case.operator == "cluster_attention":
        calls[GATHER] = lambda *args, **_: instead.gathered_attention(*args[:WITHOUT_BLANK])
    return calls


def _forward(call: Callable[..., object], case: Case) -> Callable[[], object]:
    @torch.inference_mode()
    def run() -> object:
        return call(*case.args, **case.kwargs)

    return run


def _both(call: Callable[..., Tensor], case: Case) -> Callable[[], object]:
    args = list(case.args)
    for i in LEARNED[case.operator]:
        if args[i] is not None:
            args[i] = args[i].detach().requires_grad_()
    leaves = [x for x in args if isinstance(x, Tensor) and x.requires_grad]

    def run() -> object:
        out = call(*args, **case.kwargs)
        # The blank token is not an argument of all.
        return torch.autograd.grad(out, leaves, torch.ones_like(out), allow_unused=True)

    return run


def _measure(what: str, size: tuple[int, int], runs: int, ways: dict[str, Way]) -> list[Row]:
    figures, reasons = take_turns(ways, runs, PATIENCE)
    return make_rows(SECTION, size, figures, reasons, lambda _: what, NOTES)


def _note_rates(row: Row, case: Case, backward: bool, limits: dict[str, float]) -> None:
    """Say how near to the machine's limits ours comes."""
    flops = operations(case, backward) / row.seconds
    moved = bytes_moved(case, backward) / row.seconds
    row.note = (
        f"{flops / 1e9:.0f} GFLOP/s ({flops / limits['flops']:.0%} of limit), "
        f"{moved / 1e9:.1f} GB/s ({moved / limits['bytes']:.0%})"
    )
