"""Whether this machine's GPU computes what it should, and how fast: `make gpu-check`.

Runs one check after the other, each in a process of its own with a time limit, shows a line for
each, and ends with a verdict. Their whole output goes to output/gpu_check/<check>.log. The
benchmark comes last and gets the time that is left; its report is benchmarks/<gpu>.json.

Without a GPU it says so and checks nothing.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

REPO = Path(__file__).resolve().parents[1]
LOGS = REPO / "output" / "gpu_check"
# Seconds for everything.
BUDGET = 520
# Every test of the operators but those of the CPU's checks, on the GPU's kernels.
OPERATOR_TESTS = [
    f"tests/ops/test_{name}.py"
    for name in (
        "knn",
        "cluster_attention",
        "cluster_readers",
        "point_conv",
        "shepard_interpolate",
        "deformable_points",
        "native",
        "ops",
    )
]
GOLDEN_TESTS = ["tests/backbone/test_golden_backbone.py", "tests/test_golden_model.py"]


@dataclass(frozen=True)
class Check:
    """A command that ends with status 0 where all is well.

    Attributes:
        name: for the table and the log.
        command: arguments of Python, or of the program named first if ``program``.
        limit: most seconds.
        program: whether ``command`` begins with a program other than Python.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    program: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a check: ``fault`` is None where it passed; ``note`` is its last line."""

    name: str
    seconds: float
    fault: str | None
    note: str


def checks(python: str = sys.executable) -> list[Check]:
    """All of them but the benchmark, in order."""
    pytest = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    found = [
        Check("operators", (*pytest, *OPERATOR_TESTS, "--device", "cuda"), 150),
        Check("golden cases", (*pytest, *GOLDEN_TESTS, "--device", "cuda"), 90),
        Check("model", (*pytest, "tests/gpu"), 120),
    ]
    sanitizer = find_sanitizer()
    if sanitizer:
        # Other libraries' kernels are not looked at.
        options = ("--kernel-name", "kns=aff_seg", "--error-exitcode", "9")
        for tool in ("memcheck", "racecheck"):
            command = (sanitizer, "--tool", tool, *options, python, "tests/gpu/small_run.py")
            found.append(Check(tool, command, 90, program=True))
    return [*found, Check("training", ("tests/gpu/train_shapes.py",), 120)]


def find_sanitizer() -> str | None:
    """Path of compute-sanitizer, or None."""
    from torch.utils.cpp_extension import CUDA_HOME

    beside = os.path.join(CUDA_HOME or "", "bin")
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=beside)


def run(check: Check, left: float) -> Outcome:
    """Run a check within its limit and the ``left`` seconds."""
    limit = min(check.limit, left)
    log = LOGS / f"{check.name.replace(' ', '_')}.log"
    command = check.command if check.program else (sys.executable, *check.command)
    started = time.perf_counter()
    fault = None
    if limit <= 0:
        return Outcome(check.name, 0.0, "no time was left for it", "")
    with log.open("w", encoding="utf-8") as stream:
        try:
            done = subprocess.run(
                command, cwd=REPO, stdout=stream, stderr=subprocess.STDOUT, timeout=limit
            )
        except subprocess.TimeoutExpired:
            fault = f"cut off after {limit:.0f} s"
        else:
            if done.returncode:
                fault = f"ended with status {done.returncode}"
    seconds = time.perf_counter() - started
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return Outcome(check.name, seconds, fault, lines[-1].strip("= ") if lines else "")


def line(outcome: Outcome) -> str:
    """A row of the table."""
    verdict = "passed" if outcome.fault is None else "FAILED"
    note = outcome.note if outcome.fault is None else f"{outcome.fault}: {outcome.note}"
    return f"{outcome.name:14} {verdict}  {outcome.seconds:5.0f} s  {note[:110]}"


def main() -> None:
    if not torch.cuda.is_available():
        print("No GPU is visible: nothing was checked.")
        return
    started = time.perf_counter()
    gpu = torch.cuda.get_device_name()
    print(f"{gpu}, CUDA {torch.version.cuda}, PyTorch {torch.__version__}", flush=True)
    LOGS.mkdir(parents=True, exist_ok=True)
    report = f"benchmarks/{re.sub(r'[^a-z0-9]+', '_', gpu.lower()).strip('_')}.json"
    outcomes = []
    for check in checks():
        outcomes.append(run(check, BUDGET - (time.perf_counter() - started)))
        print(line(outcomes[-1]), flush=True)
    # What the benchmark compares with, if it can be had.
    subprocess.run([sys.executable, "tools/setup_env_bench.py"], cwd=REPO, check=False)
    left = BUDGET - (time.perf_counter() - started)
    command = ("tools/benchmark.py", "--seconds", f"{left - 15:.0f}", "--output", report)
    outcomes.append(run(Check("benchmark", command, left), left))
    print(line(outcomes[-1]))
    failed = [outcome.name for outcome in outcomes if outcome.fault]
    seconds = time.perf_counter() - started
    verdict = f"FAILED: {', '.join(failed)} (see {LOGS.relative_to(REPO)})" if failed else "PASSED"
    print(f"{verdict} after {seconds:.0f} s; benchmark in {report}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
