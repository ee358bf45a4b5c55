"""Whether this machine's GPU computes what it should, and how fast: `make gpu-check`.

Runs one check after the other, each in a process of its own with a time limit, shows a line for
each, and ends with a verdict. Their whole output goes to output/gpu_check/<check>.log. The
benchmark comes last and gets the time that is left; its report is benchmarks/<gpu>.json.

Without a GPU it says so and checks nothing.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from bench.names import file_name

REPO = Path(__file__).resolve().parents[1]
LOGS = REPO / "output" / "gpu_check"
# Seconds for everything, and at least for this program if set-up took long. `make` tells by
# GPU_CHECK_STARTED when it began, in seconds of the epoch.
BUDGET, LEAST = 520, 360
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
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
        environment: variables, besides those of this process.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    program: bool = False
    environment: dict[str, str] = field(default_factory=dict)


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
        # Some versions of torch read this once, and want it for deterministic algorithms.
        Check("model", (*pytest, "tests/gpu"), 120, environment={CUBLAS: ":4096:8"}),
    ]
    sanitizer = find_sanitizer()
    if sanitizer:
        # Other libraries' kernels are not looked at.
        options = ("--kernel-name", "kns=aff_seg", "--error-exitcode", "9")
        for tool in ("memcheck", "racecheck"):
            command = (sanitizer, "--tool", tool, *options, python, "tests/gpu/small_run.py")
            environment = {
                # Every tensor then has memory of its own, so that reading past its end shows.
                "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
                "PYTHONPATH": str(REPO / "tests"),
            }
            found.append(Check(tool, command, 90, program=True, environment=environment))
    return [*found, Check("training", ("tests/gpu/train_shapes.py",), 120)]


def find_sanitizer() -> str | None:
    """Path of compute-sanitizer, or None."""
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    folders = [os.environ.get("PATH", ""), *(os.path.join(home, "bin") for home in homes if home)]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


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
        process = subprocess.Popen(
            command,
            cwd=REPO,
            env={**os.environ, **check.environment},
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            fault = f"cut off after {limit:.0f} s"
        else:
            fault = f"ended with status {status}" if status else None
        finally:
            _end(process)
    seconds = time.perf_counter() - started
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return Outcome(check.name, seconds, fault, lines[-1].strip("= ") if lines else "")


def _end(process: subprocess.Popen) -> None:
    """End a process and those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def line(outcome: Outcome) -> str:
    """A row of the table."""
    verdict = "passed" if outcome.fault is None else "FAILED"
    note = outcome.note if outcome.fault is None else f"{outcome.fault}: {outcome.note}"
    return f"{outcome.name:14} {verdict}  {outcome.seconds:5.0f} s  {note[:110]}"


def main() -> None:
    if not torch.cuda.is_available():
        built = f"PyTorch {torch.__version__}, built for CUDA {torch.version.cuda or '(none)'}"
        print(f"No GPU is visible to {built}: nothing was checked.")
        return
    began = float(os.environ.get("GPU_CHECK_STARTED", time.time()))
    deadline = max(began + BUDGET, time.time() + LEAST)
    gpu = torch.cuda.get_device_name()
    print(f"{gpu}, CUDA {torch.version.cuda}, PyTorch {torch.__version__}", flush=True)
    report = f"benchmarks/{file_name(gpu)}.json"
    try:
        LOGS.mkdir(parents=True, exist_ok=True)
        (REPO / report).parent.mkdir(exist_ok=True)
        (REPO / report).touch()
    except OSError as error:
        sys.exit(f"Logs go to {LOGS} and the report to {report}, which cannot be written: {error}")
    # What the benchmark compares with, if it can be had.
    extra = Check("transformers", ("tools/setup_env_bench.py",), 60)
    outcomes = []
    for check in (*checks(), extra):
        outcomes.append(run(check, deadline - time.time()))
        print(line(outcomes[-1]), flush=True)
    if not find_sanitizer():
        print("memcheck and racecheck were left out: there is no compute-sanitizer.")
    left = deadline - time.time()
    command = ("tools/benchmark.py", "--seconds", f"{left - 15:.0f}", "--output", report)
    outcomes.append(run(Check("benchmark", command, left), left))
    print(line(outcomes[-1]))
    failed = [outcome.name for outcome in outcomes if outcome.fault]
    seconds = time.time() - began
    verdict = f"FAILED: {', '.join(failed)} (see {LOGS.relative_to(REPO)})" if failed else "PASSED"
    print(f"{verdict} after {seconds:.0f} s; benchmark in {report}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
