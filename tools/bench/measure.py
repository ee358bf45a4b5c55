"""Time and peak memory of calls, several ways of doing a thing taking turns.

A way is a function of one flag, ``memory``: it runs once and returns a :class:`Sample` for each
part of the work. Its first run, with ``memory`` set, also warms it up.
"""

import ctypes
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class Sample:
    """One run of one part: seconds, and bytes above those in use before the call."""

    seconds: float
    peak: int | None


Way = Callable[[bool], dict[str, Sample]]


@dataclass(frozen=True)
class Figure:
    """Median seconds of ``runs`` runs, and the peak of the first."""

    seconds: float
    peak: int | None
    runs: int


class WayError(Exception):
    """Why a way could not be measured, in a few words."""


def best_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Stopwatch:
    """Laps of one call, each with its seconds and, if wanted, its peak memory.

    Memory counts from what the process (or the GPU) holds when the watch starts. It is the
    allocator's peak on a GPU, else the peak of resident memory.

    Args:
        device: where the call computes.
        memory: look at memory too. Runs so watched give free memory back to the system first.
    """

    def __init__(self, device: torch.device, memory: bool):
        self.device, self.memory = device, memory
        self.samples: dict[str, Sample] = {}
        if memory:
            _reset_peak(device)
            self._before = _in_use(device)
        self._restart()

    def lap(self, name: str) -> None:
        """End the lap ``name``; the next one starts here."""
        self._wait()
        seconds = time.perf_counter() - self._started
        peak = None
        if self.memory:
            peak = max(0, _peak(self.device) - self._before)
            _reset_peak(self.device)
        self.samples[name] = Sample(seconds, peak)
        self._restart()

    def _restart(self) -> None:
        self._wait()
        self._started = time.perf_counter()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def single(call: Callable[[], object], device: torch.device) -> Way:
    """A way of one part, named "", from a plain call."""

    def way(memory: bool) -> dict[str, Sample]:
        watch = Stopwatch(device, memory)
        call()
        watch.lap("")
        return watch.samples

    return way


def combine(samples: dict[str, Sample], names: tuple[str, ...]) -> Sample:
    """Several laps as one: the sum of their seconds, the largest of their peaks."""
    parts = [samples[name] for name in names]
    peaks = [part.peak for part in parts if part.peak is not None]
    return Sample(sum(part.seconds for part in parts), max(peaks, default=None))


def take_turns(
    ways: dict[str, Way], runs: int, patience: float
) -> tuple[dict[str, dict[str, Figure]], dict[str, str]]:
    """Run all ways in turn, again and again.

    Args:
        ways: name to way.
        runs: runs of each that count, after one that does not.
        patience: no new round starts after so many seconds. A way whose first run takes longer
            than this is not run again: its first run counts.

    Returns:
        figures by way and part; for each way that could not be measured, why.
    """
    first, counted, reasons = {}, {name: [] for name in ways}, {}

    def run(name: str, memory: bool) -> dict[str, Sample] | None:
        try:
            return ways[name](memory)
        except WayError as error:
            reasons[name] = str(error)

    for name in ways:
        started = time.perf_counter()
        if (samples := run(name, True)) is not None:
            first[name] = samples
            if time.perf_counter() - started > patience:
                counted[name].append(samples)
    again = [name for name in first if not counted[name]]
    started = time.perf_counter()
    for count in range(runs):
        if count and time.perf_counter() - started > patience:
            break
        for name in again:
            if name not in reasons and (samples := run(name, False)) is not None:
                counted[name].append(samples)
    return {
        name: {
            part: Figure(
                statistics.median(samples[part].seconds for samples in counted[name]),
                sample.peak,
                len(counted[name]),
            )
            for part, sample in first[name].items()
        }
        for name in ways
        if counted[name]
    }, reasons


def free_memory(device: torch.device) -> int:
    """Bytes that a call may still take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _kilobytes(MEMINFO, "MemAvailable")


def _kilobytes(path: Path, key: str) -> int:
    """A ``key:  123 kB`` line of a file, in bytes."""
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
    return 1024 * int(lines[key].split()[0])


def _in_use(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _kilobytes(STATUS, "VmRSS")


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    # glibc alone keeps freed memory for itself, and alone has this function.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
    if _can_reset_peak():
        CLEAR_REFS.write_text("5")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _can_reset_peak():
        return _kilobytes(STATUS, "VmHWM")
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@lru_cache
def _can_reset_peak() -> bool:
    """Whether the kernel lets a process forget its peak; else the peak is of its whole life."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True
