"""Times of the operators and of the model, against others and the machine: `make bench`.

Prints a table, writes the same as JSON and draws time against tokens. Every figure is a median of
runs on random images with random weights, batch 1, float32, the ways of doing a thing taking
turns. Figures of one run compare; those of different runs on a busy machine do not.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from bench import machine, scaling
from bench.measure import best_device
from bench.models import SURE_QUERIES
from bench.operators import operator_rows
from bench.parts import comparison_rows, part_rows
from bench.rows import Row, table, text
from bench.targets import target_table, targets

KNOWN_VARIANTS = ("mini", "tiny", "small", "base")
VARIANTS = ("mini", "tiny")
SIZES = ((512, 512), (1024, 2048))
# What --quick does instead, for tests.
QUICK_VARIANTS, QUICK_SIZES = ("mini",), ((128, 128),)
QUICK_SCALING = ((64, 64), (128, 128))
LEGEND = f"""\
peak MB: above what the process, with the model loaded, held before the call, inputs not counted.
Operators: arguments of a run of AFF-Tiny. Parts: of one run of the whole model, which gives
semantic, panoptic and instance results; against transformers, panoptic results alone. In every
model {SURE_QUERIES} queries are made sure of a class, or there would be nothing to post-process."""


def main() -> None:
    args = _arguments()
    started = time.perf_counter()
    device = best_device()
    report = machine.facts(device)
    runs, side, copied = (1, 512, 1 << 24) if args.quick else (5, 4096, 1 << 28)
    limits = machine.limits(device, side, copied, runs)
    print(_head(report, limits), flush=True)

    rows: list[Row] = []
    for size in args.sizes:
        _say(f"operators, {text(size)}", started)
        rows += operator_rows(size, runs, limits, with_flex=not args.quick)
    for variant in args.variants:
        _say(f"parts of AFF-{variant}", started)
        rows += part_rows(variant, args.sizes, runs)
    for size in args.sizes:
        _say(f"whole model against transformers, {text(size)}", started)
        rows += comparison_rows(size, runs)
    _say("time against tokens", started)
    curve = scaling.scaling_rows(QUICK_SCALING if args.quick else scaling.SIZES, runs)
    rows += curve

    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    title = f"{report['device']}, {report['processor']}, {report['threads']} threads"
    exponent = scaling.plot(curve, title, output.with_suffix(".png"))
    curve[-1].note = f"time ~ tokens^{exponent:.2f}"
    reached = targets(rows, None if args.quick else exponent)
    report |= {
        "seconds": time.perf_counter() - started,
        "limits": limits,
        "exponent": exponent,
        "rows": [asdict(row) for row in rows],
        "targets": [{**asdict(target), "verdict": target.verdict} for target in reached],
    }
    output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\n{table(rows)}\n\n{LEGEND}\n\n{target_table(reached)}\n")
    print(f"{report['seconds']:.0f} s; written to {output} and {output.with_suffix('.png')}.")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=KNOWN_VARIANTS, metavar="VARIANT")
    parser.add_argument("--sizes", nargs="+", type=_size, metavar="HxW")
    parser.add_argument("--quick", action="store_true", help="small images, one run, for tests")
    parser.add_argument("--output", default="output/benchmark.json", metavar="FILE")
    args = parser.parse_args()
    args.variants = args.variants or (QUICK_VARIANTS if args.quick else VARIANTS)
    args.sizes = args.sizes or (QUICK_SIZES if args.quick else SIZES)
    return args


def _size(text: str) -> tuple[int, int]:
    height, width = map(int, text.split("x"))
    return height, width


def _head(report: dict, limits: dict[str, float]) -> str:
    lines = [f"{name}: {value}" for name, value in report.items() if name != "operators"]
    lines += [f"{name}: {path}" for name, path in report["operators"].items()]
    lines.append(
        f"limits: {limits['mm'] / 1e9:.0f} GFLOP/s by mm, {limits['conv2d'] / 1e9:.0f} by conv2d; "
        f"copy {limits['bytes'] / 1e9:.1f} GB/s"
    )
    return "\n".join(lines)


def _say(what: str, started: float) -> None:
    print(f"[{time.perf_counter() - started:4.0f} s] {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
