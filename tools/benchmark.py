"""Times of the operators and of the model, against others and the machine: `make bench`.

Prints a table, writes the same as text and as JSON after every row, and draws time against tokens.
On a GPU where there is one, in float32 and bfloat16, else on the CPU in float32. Every figure is a
median of runs on random images with random weights, batch 1, the ways of doing a thing taking
turns. Figures of one run compare; those of different runs on a busy machine do not.

With --data or --step it does what training does beside the model instead: images of drawn
datasets through every mapper, stage by stage, and a step of training, part by part.

The exit status is 1 if something of ours failed, and 0 even if something that it is compared with
did. Both are in the table.
"""

import argparse
import math
import sys
import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from bench import STARTED, machine, miniatures, plans, scaling
from bench.jobs import Helper, Job, Runner, inline, rows_of
from bench.measure import WayError, best_device
from bench.names import file_name
from bench.report import LEGEND, TRAINING_LEGEND, Report
from bench.rows import OURS
from bench.targets import gpu_targets, targets, training_targets

from aff_seg import ops

KNOWN_VARIANTS = ("mini", "tiny", "small", "base")
VARIANTS = {"cpu": ("mini", "tiny"), "cuda": ("mini", "tiny", "small")}
# What --step takes.
STEP_VARIANTS, STEP_IMAGES = {"cpu": ("mini",), "cuda": ("tiny",)}, {"cpu": 2, "cuda": 8}
SIZES = ((512, 512), (1024, 2048))
RUNS = {"cpu": 5, "cuda": 15}
# Side of a product and bytes of a copy that show what the machine can do.
LIMITS = {"cpu": (4096, 1 << 28), "cuda": (8192, 1 << 30)}
# What --quick does instead, for tests.
QUICK_VARIANTS, QUICK_SIZES = ("mini",), ((128, 128),)
QUICK_SCALING = ((64, 64), (128, 128))
QUICK_LIMITS = (512, 1 << 24)


def main() -> None:
    args = _arguments()
    kind = best_device().type
    on_gpu = kind == "cuda"
    if on_gpu and "cuda" not in ops.NATIVE_DEVICES:
        print("The operators are not built for the GPU: ours is the reference.", file=sys.stderr)
    training = args.data or args.step
    with ExitStack() as stack:
        if training:
            layouts = miniatures.SIZES if args.data else ["cityscapes"]
            stack.enter_context(miniatures.drawn(layouts, args.quick))
        helper = stack.enter_context(closing(Helper(alone=not training)))
        _run(args, kind, helper if on_gpu or training else inline)


def _run(args: argparse.Namespace, kind: str, run: Runner) -> None:
    """Measure everything and report it; see above for the exit status."""
    runs = 1 if args.quick else RUNS[kind]
    side, copied = QUICK_LIMITS if args.quick else LIMITS[kind]
    survey = {"side": side, "copied": copied, "runs": runs}
    try:
        ((head, limits),) = run(Job(machine.survey, "", "", arguments=survey), math.inf)
    except WayError as error:
        sys.exit(f"What the machine can do cannot be measured: {error}.")
    output = Path(args.output or _default_output(args, kind, head["device"]))
    training = args.data or args.step
    judge = training_targets if training else targets
    if kind == "cuda" and not training:
        judge = partial(gpu_targets, limits)
    report = Report(head, limits, judge, output, TRAINING_LEGEND if training else LEGEND)
    print(report.beginning, flush=True)
    report.write()

    def say(what: str) -> None:
        print(f"[{time.perf_counter() - STARTED:4.0f} s] {what}", file=sys.stderr, flush=True)

    jobs = _training_jobs(args, kind, runs) if training else _jobs(args, kind, runs, limits)
    for row in rows_of(jobs, run, STARTED + args.seconds, say):
        report.add(row)
    drawn = _draw(report, head, args.quick)
    report.write()
    failed = [row for row in report.rows if row.failed]
    print(f"\n{report.results}")
    print(
        f"{time.perf_counter() - STARTED:.0f} s; {len(failed)} of {len(report.rows)} rows failed; "
        f"written to {', '.join(map(str, (output, output.with_suffix('.txt'), *drawn)))}."
    )
    sys.exit(any(row.way.startswith(OURS) for row in failed))


def _jobs(args: argparse.Namespace, kind: str, runs: int, limits: dict[str, float]) -> list[Job]:
    """Operators and models."""
    extent = plans.Extent(
        variants=args.variants or (QUICK_VARIANTS if args.quick else VARIANTS[kind]),
        sizes=args.sizes or (QUICK_SIZES if args.quick else SIZES),
        scaling_sizes=QUICK_SCALING if args.quick else scaling.SIZES,
        runs=runs,
        with_flex=not args.quick,
        limits=limits,
    )
    return plans.on_gpu(extent) if kind == "cuda" else plans.on_cpu(extent)


def _training_jobs(args: argparse.Namespace, kind: str, runs: int) -> list[Job]:
    """What training does beside the model."""
    jobs = plans.on_data(args.quick) if args.data else []
    if args.step:
        variants = args.variants or (QUICK_VARIANTS if args.quick else STEP_VARIANTS[kind])
        jobs += plans.on_step(variants, STEP_IMAGES[kind], args.quick, runs)
    return jobs


def _draw(report: Report, head: dict, quick: bool) -> list[Path]:
    """Plot time against tokens, if measured; return the file."""
    curve = [row for row in report.rows if row.section == scaling.SECTION and row.seconds]
    if len(curve) < 2:
        return []
    drawn = report.output.with_suffix(".png")
    title = f"{head['device']}, {head['processor']}, {head['threads']} threads"
    exponent = scaling.plot(curve, title, drawn)
    curve[-1].note = f"time ~ tokens^{exponent:.2f}"
    report.exponent = None if quick else exponent
    return [drawn]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=KNOWN_VARIANTS, metavar="VARIANT")
    parser.add_argument("--sizes", nargs="+", type=_size, metavar="HxW")
    parser.add_argument(
        "--data",
        action="store_true",
        help="instead, time the loading of images by every mapper, stage by stage",
    )
    parser.add_argument(
        "--step",
        action="store_true",
        help="instead, time the parts of a training step, and the losses against a plain way",
    )
    parser.add_argument("--quick", action="store_true", help="small images, one run, for tests")
    parser.add_argument(
        "--seconds",
        type=float,
        default=math.inf,
        metavar="N",
        help="begin nothing new after so long, and on a GPU end what is not done; what has "
        "targets comes first there, and the table says what is missing",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="JSON; by default output/benchmark.json, on a GPU benchmarks/<its name>.json, with "
        "_training before the dot for --data and --step",
    )
    return parser.parse_args()


def _size(text: str) -> tuple[int, int]:
    height, width = map(int, text.split("x"))
    return height, width


def _default_output(args: argparse.Namespace, kind: str, device: str) -> str:
    ending = "_training" if args.data or args.step else ""
    if kind == "cpu" or args.quick:
        return f"output/benchmark{ending}.json"
    return f"benchmarks/{file_name(device)}{ending}.json"


if __name__ == "__main__":
    main()
