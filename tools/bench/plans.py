"""What is measured on each kind of device, the most important first."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bench import loading, operators, parts, scaling, set_losses, steps
from bench.jobs import LIMIT, Job
from bench.models import TRAINING_STEP, WHOLE
from bench.rows import BFLOAT16, FLOAT32, OURS, Row, text

Size = tuple[int, int]
# Seconds for compiling flex_attention, forward and backward, and measuring it.
FLEX_LIMIT = 90.0
# Of a job whose rows have one type or the other.
EVERY_TYPE = "all"
# Passes over a drawn dataset, (h, w) and points of the targets of losses, seconds for a step.
LOADING_ROUNDS = 5
LOSS_SIZE, LOSS_QUICK_SIZE, LOSS_POINTS = (512, 512), (64, 64), 12544
STEP_LIMIT = 400.0


@dataclass(frozen=True)
class Extent:
    """How much is measured.

    Attributes:
        variants: of AFF.
        sizes: of images, (h, w).
        scaling_sizes: of those whose times give the curve.
        runs: of each thing.
        with_flex: compile flex_attention too.
        limits: of the machine, see :func:`bench.machine.limits`.
    """

    variants: Sequence[str]
    sizes: Sequence[Size]
    scaling_sizes: Sequence[Size]
    runs: int
    with_flex: bool
    limits: dict[str, float]


def on_cpu(extent: Extent) -> list[Job]:
    """Everything in float32, against the reference and others, then time against tokens."""
    runs, rated = extent.runs, {"limits": extent.limits, "with_flex": extent.with_flex}
    jobs = [
        _sized(operators.operator_rows, size, operators.SECTION, "all", runs, **rated)
        for size in extent.sizes
    ]
    for variant in extent.variants:
        arguments = {"variant": variant, "sizes": extent.sizes, "runs": runs}
        what = parts.part_name(variant, "")
        jobs.append(Job(parts.part_rows, parts.PARTS, what, arguments=arguments))
    for size in extent.sizes:
        jobs.append(_sized(parts.comparison_rows, size, parts.COMPARISON, WHOLE, runs))
    return [*jobs, _scaling(extent)]


def on_gpu(extent: Extent) -> list[Job]:
    """Everything in float32 and bfloat16; what has targets first, large images before small."""
    largest, *smaller = sorted(extent.sizes, reverse=True)
    jobs = [
        _operators(extent, largest, BFLOAT16),
        _part(parts.gpu_backbone_rows, extent, largest, "tiny", parts.BACKBONE_ALONE, BFLOAT16),
        _compared(extent, largest),
        _operators(extent, largest, FLOAT32),
    ]
    variants = sorted(extent.variants, key=lambda variant: variant != "tiny")
    for size in (largest, *smaller):
        for variant in variants:
            jobs.append(_part(parts.gpu_part_rows, extent, size, variant, WHOLE))
            jobs.append(_part(parts.gpu_step_rows, extent, size, variant, TRAINING_STEP))
        if extent.with_flex:
            jobs.append(_flex(extent, size, BFLOAT16))
    for size in smaller:
        jobs += [_operators(extent, size, dtype) for dtype in (BFLOAT16, FLOAT32)]
        jobs.append(_compared(extent, size))
    if extent.with_flex:
        jobs += [_flex(extent, size, FLOAT32) for size in (largest, *smaller)]
    return [*jobs, _scaling(extent)]


def on_data(quick: bool) -> list[Job]:
    """The training mapper of every recipe."""
    jobs = []
    for task in loading.QUICK_TASKS if quick else loading.TASKS:
        arguments = {"task": task, "quick": quick, "rounds": 1 if quick else LOADING_ROUNDS}
        jobs.append(Job(loading.loading_rows, loading.SECTION, task, arguments=arguments))
    return jobs


def on_step(variants: Sequence[str], images: int, quick: bool, runs: int) -> list[Job]:
    """Criterion and matcher, then the parts of a training step."""
    size, points = (LOSS_QUICK_SIZE, 64) if quick else (LOSS_SIZE, LOSS_POINTS)
    what = set_losses.what(images)
    losses = {"images": images, "size": size, "points": points, "runs": runs}
    jobs = [
        Job(set_losses.loss_rows, set_losses.SECTION, what, text(size), arguments=losses),
    ]
    for variant in variants:
        arguments = {"variant": variant, "images": images, "quick": quick, "runs": runs}
        what = parts.part_name(variant, steps.TASK)
        jobs.append(
            Job(steps.step_rows, steps.SECTION, what, arguments=arguments, limit=STEP_LIMIT)
        )
    return jobs


def _operators(extent: Extent, size: Size, dtype: str) -> Job:
    return _sized(
        operators.gpu_operator_rows,
        size,
        operators.SECTION,
        "all",
        extent.runs,
        row_dtype=dtype,
        dtype=parts.DTYPES[dtype],
        limits=extent.limits,
        # Positions have one type in all runs.
        searches=dtype == BFLOAT16,
    )


def _flex(extent: Extent, size: Size, dtype: str) -> Job:
    return _sized(
        operators.gpu_flex_rows,
        size,
        operators.SECTION,
        "cluster_attention",
        extent.runs,
        way=operators.FLEX,
        row_dtype=dtype,
        limit=FLEX_LIMIT,
        dtype=parts.DTYPES[dtype],
    )


def _part(
    make: Callable[..., Iterable[Row]],
    extent: Extent,
    size: Size,
    variant: str,
    what: str,
    dtype: str = EVERY_TYPE,
) -> Job:
    what = parts.part_name(variant, what)
    return _sized(make, size, parts.PARTS, what, extent.runs, row_dtype=dtype, variant=variant)


def _compared(extent: Extent, size: Size) -> Job:
    section, make = parts.COMPARISON, parts.gpu_comparison_rows
    return _sized(make, size, section, WHOLE, extent.runs, row_dtype=EVERY_TYPE)


def _scaling(extent: Extent) -> Job:
    arguments = {"sizes": extent.scaling_sizes, "runs": extent.runs}
    return Job(scaling.scaling_rows, scaling.SECTION, scaling.WHAT, arguments=arguments)


def _sized(
    make: Callable[..., Iterable[Row]],
    size: Size,
    section: str,
    what: str,
    runs: int,
    *,
    way: str = OURS,
    row_dtype: str = FLOAT32,
    limit: float = LIMIT,
    **arguments: object,
) -> Job:
    """A job on images of one size, which ``make`` gets beside ``runs`` and other arguments."""
    arguments |= {"size": size, "runs": runs}
    return Job(make, section, what, text(size), way, row_dtype, arguments, limit)
