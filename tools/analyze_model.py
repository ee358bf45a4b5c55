"""Parameters, FLOPs, memory and tokens of the model of a config, for an image of a size.

    python tools/analyze_model.py --config-file configs/ade20k/semantic/aff_tiny.yaml --size 512 512

One multiply-add is one FLOP, as fvcore counts. The weights are random; only where results are
resized to the image can FLOPs depend on them, a little. The heads of Detectron2's detectors take
every box, however low its score, up to TEST.DETECTIONS_PER_IMAGE: the most that they can cost.
"""

import argparse

from tabulate import tabulate

from aff_seg.analysis import EARLY_MASKS, Analysis, analyze_config
from aff_seg.cli import plain_errors
from aff_seg.errors import UserError, enough_memory
from aff_seg.setup_cfg import load_cfg

PROGRAM = "analyze_model.py"
GIGA, MEBI = 1e9, 2**20
# What the model does itself, such as results from masks.
OUTSIDE = "outside of these"


def report(analysis: Analysis, *, depth: int) -> str:
    """The analysis as tables and sentences, the total last."""
    whole = analysis.flops.get("", {})
    parts = [_modules(analysis, depth)]
    kinds = [(kind, f"{count / GIGA:.3f}") for kind, count in whole.items()]
    parts.append(_table(kinds, ("kind", "GFLOPs")))
    if analysis.stages:
        parts.append(_stages(analysis))
    parts.append(
        "FLOPs: a multiply-add is one; the search for neighbours (knn) and what works element by "
        "element count as none."
    )
    if skipped := analysis.skipped_flops():
        computed = analysis.total_flops() - skipped
        parts.append(
            f"{EARLY_MASKS[0].upper()}{EARLY_MASKS[1:]} belong to the model as published and are "
            f"counted; inference leaves them out and computes {computed / GIGA:.1f} GFLOPs."
        )
    parts.append(
        f"Activations: {analysis.peak[''] / MEBI:.0f} MiB at most at a time, computed from the "
        "sizes of the tensors that live at once at inference, one image, without parameters, the "
        "image and what an operation holds while it runs."
    )
    total = analysis.total_flops() / GIGA
    parts.append(f"total: {analysis.parameters['']} parameters, {total:.1f} GFLOPs")
    return "\n\n".join(parts)


def _modules(analysis: Analysis, depth: int) -> str:
    names = {*analysis.parameters, *analysis.flops} - {""}
    rows = []
    for name in sorted(names, key=_in_order):
        if name.count(".") < depth:
            parameters, flops = analysis.parameters[name], analysis.total_flops(name)
            peak = f"{analysis.peak[name] / MEBI:.1f}" if name in analysis.peak else ""
            rows.append((name, parameters, f"{flops / GIGA:.3f}", peak))
    top = [name for name in names if "." not in name] if depth else []
    parameters = analysis.parameters[""] - sum(analysis.parameters[name] for name in top)
    flops = analysis.total_flops() - sum(analysis.total_flops(name) for name in top)
    rows.append((OUTSIDE, parameters, f"{flops / GIGA:.3f}", ""))
    headers = ("module", "parameters", "GFLOPs", "peak MiB")
    return _table(rows, headers)


def _in_order(name: str) -> list[tuple[int, str]]:
    """Key that sorts names by their parts, numbers as such."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _stages(analysis: Analysis) -> str:
    first = analysis.stages[0].tokens
    rows = [
        (number, stage.tokens, f"{stage.tokens / first:.1%}", stage.channels)
        for number, stage in enumerate(analysis.stages, 1)
    ]
    return _table(rows, ("stage", "tokens", "of the first", "channels"))


def _table(rows: list[tuple], headers: tuple[str, ...]) -> str:
    alignment = ("left", *["right"] * (len(headers) - 1))
    return tabulate(rows, headers=headers, colalign=alignment, disable_numparse=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file", required=True, metavar="F", help="config of the model, path or name"
    )
    parser.add_argument(
        "--size", required=True, nargs=2, type=int, metavar=("H", "W"), help="of the image"
    )
    parser.add_argument(
        "--depth", type=int, default=2, help="levels of modules in the table (default 2)"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides")
    args = parser.parse_args()
    with plain_errors(PROGRAM):
        if args.depth < 0:
            raise UserError(f"--depth is {args.depth}, but must be at least 0.")
        size = f"--size {args.size[0]} {args.size[1]}"
        if min(args.size) < 1:
            raise UserError(f"{size} has no pixel; give two numbers of at least 1.")
        cfg = load_cfg(args.config_file, args.opts)
        with enough_memory(f"{size} needs more memory than there is; take a smaller one."):
            analysis = analyze_config(cfg, tuple(args.size))
        print(report(analysis, depth=args.depth))


if __name__ == "__main__":
    main()
