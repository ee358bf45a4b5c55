"""What runs the benchmark, and the most it can do."""

import os
import platform
import statistics
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.nn.functional as F

from aff_seg import ops
from bench.measure import single


def facts(device: torch.device) -> dict:
    """Date, versions, processor and operators, as the head of the report."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": installed("transformers"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
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
    """Operations and bytes a second of plain work in float32.

    Args:
        device: what to measure.
        side: of the square matrices that are multiplied.
        copied: bytes of the tensor that is copied; reading and writing both count.
        runs: runs of each, of which the median counts.

    Returns:
        operations a second of ``torch.mm`` and of the same product as a 1x1 convolution; the
        faster of the two as ``flops``; ``bytes`` a second of a copy.
    """
    a, b = torch.randn(2, side, side, device=device)
    pixels = b.view(1, side, side, 1)
    weight = a.view(side, side, 1, 1)
    source = torch.ones(copied // 4, device=device)
    target = torch.empty_like(source)
    with torch.inference_mode():
        product = 2 * side**3 / _median(lambda: torch.mm(a, b), device, runs)
        convolution = 2 * side**3 / _median(lambda: F.conv2d(pixels, weight), device, runs)
        copy = 2 * copied / _median(lambda: target.copy_(source), device, runs)
    return {
        "mm": product,
        "conv2d": convolution,
        "flops": max(product, convolution),
        "bytes": copy,
    }


def _median(call: Callable[[], object], device: torch.device, runs: int) -> float:
    way = single(call, device)
    return statistics.median([way(False)[""].seconds for _ in range(runs + 1)][1:])


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
