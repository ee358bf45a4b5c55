"""What runs the benchmark, and the most it can do."""

import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.nn.functional as F

from aff_seg import ops
from bench.measure import best_device, single

# What nvidia-smi is asked for, and how the report calls it.
_ASKED = {
    "driver_version": "driver",
    "clocks.max.sm": "highest clock",
    "clocks.max.mem": "highest memory clock",
    "power.limit": "power limit",
}


def survey(**extent: int) -> Iterator[tuple[dict, dict[str, float]]]:
    """The facts about the best device and its limits, once."""
    device = best_device()
    yield facts(device), limits(device, **extent)


def facts(device: torch.device) -> dict:
    """Date, versions, processor and operators, as the head of the report."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": installed("transformers"),
        **(_gpu(device) if device.type == "cuda" else {"device": "CPU"}),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "operators": ops.active_paths(),
    }


def installed(package: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def limits(device: torch.device, side: int, copied: int, runs: int) -> dict[str, float]:
    """Operations and bytes a second of plain work.

    Args:
        device: what to measure.
        side: of the square matrices that are multiplied.
        copied: bytes of the tensor that is copied; reading and writing both count.
        runs: runs of each, of which the median counts.

    Returns:
        ``bytes`` a second of a copy; operations a second in float32 by ``mm``. On a CPU, also of
        the same product as a 1x1 convolution (``conv2d``), the faster of the two as ``flops``. On
        a GPU ``flops`` is ``mm`` as torch runs it by default; also by ``mm`` with TensorFloat-32
        (``tf32``) and in bfloat16 (``bfloat16``).
    """
    a, b = torch.randn(2, side, side, device=device)
    source = torch.ones(copied // 4, device=device)
    target = torch.empty_like(source)
    work = 2 * side**3
    with torch.inference_mode():
        found = {"mm": work / _median(lambda: torch.mm(a, b), device, runs)}
        if device.type == "cuda":
            found["flops"] = found["mm"]
            with _tf32():
                found["tf32"] = work / _median(lambda: torch.mm(a, b), device, runs)
            short_a, short_b = a.bfloat16(), b.bfloat16()
            found["bfloat16"] = work / _median(lambda: torch.mm(short_a, short_b), device, runs)
        else:
            pixels, weight = b.view(1, side, side, 1), a.view(side, side, 1, 1)
            found["conv2d"] = work / _median(lambda: F.conv2d(pixels, weight), device, runs)
            found["flops"] = max(found["mm"], found["conv2d"])
        found["bytes"] = 2 * copied / _median(lambda: target.copy_(source), device, runs)
    return found


def highest(limits: dict[str, float], dtype: torch.dtype) -> float:
    """Operations a second that work in ``dtype`` is compared with."""
    return limits.get("bfloat16" if dtype == torch.bfloat16 else "flops", limits["flops"])


@contextmanager
def _tf32() -> Iterator[None]:
    """Matrix products in TensorFloat-32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _median(call: Callable[[], object], device: torch.device, runs: int) -> float:
    way = single(call, device, queued=True)
    return statistics.median([way(False)[""].seconds for _ in range(runs + 1)][1:])


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _gpu(device: torch.device) -> dict:
    """The GPU as torch sees it, and the driver's word on it where nvidia-smi is at hand."""
    properties = torch.cuda.get_device_properties(device)
    found = {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory": f"{properties.total_memory / 2**30:.0f} GiB",
        "cache": f"{properties.L2_cache_size / 2**20:.0f} MiB",
        "cuda": torch.version.cuda,
    }
    command = ["nvidia-smi", f"--id=GPU-{properties.uuid}", f"--query-gpu={','.join(_ASKED)}"]
    command.append("--format=csv,noheader")
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return found
    answers = said.stdout.strip().split(", ")
    return found | dict(zip(_ASKED.values(), answers, strict=False))
