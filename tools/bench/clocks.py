"""Time and memory as each kind of device keeps them."""

import ctypes
import resource
import time
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MEMINFO = Path("/proc/meminfo")
# Cycles that a GPU waits for the host to queue its work: some two milliseconds.
_HEAD_START = 1 << 22
# What is read between runs, in sizes of the cache that it clears.
_CACHES = 4


class Clock(Protocol):
    """Marks of time and bytes of memory."""

    def ready(self, queued: bool) -> None:
        """Prepare for a call, which a GPU starts only when the host has queued it if so wished."""

    def mark(self) -> object:
        """Now, as the device sees it."""

    def seconds(self, start: object, end: object) -> float:
        """Between two marks."""

    def in_use(self) -> int:
        """Bytes held."""

    def reset_peak(self) -> None:
        """Forget the peak so far."""

    def peak(self) -> int:
        """Most bytes held since then."""

    def free(self) -> int:
        """Bytes that a call may still take."""


@lru_cache
def clock(device: torch.device) -> Clock:
    """The clock of a device."""
    return EventClock(device) if device.type == "cuda" else HostClock()


class HostClock:
    """Wall clock, and the resident memory of the process, which first frees what it can."""

    def ready(self, queued: bool) -> None:
        """Nothing to prepare."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        return end - start

    def in_use(self) -> int:
        return _kilobytes(STATUS, "VmRSS")

    def reset_peak(self) -> None:
        # glibc alone keeps freed memory for itself, and alone has this function.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim:
            trim(0)
        if _can_reset_peak():
            CLEAR_REFS.write_text("5")

    def peak(self) -> int:
        if _can_reset_peak():
            return _kilobytes(STATUS, "VmHWM")
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def free(self) -> int:
        return _kilobytes(MEMINFO, "MemAvailable")


class EventClock:
    """Events on a GPU's current stream, and the memory of its allocator."""

    def __init__(self, device: torch.device):
        self._device = device
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self._filler = torch.zeros(_CACHES * max(cache, 1 << 20) // 4, device=device)

    def ready(self, queued: bool) -> None:
        """Clear the cache, then wait for the device, or have it wait for the host."""
        self._filler.sum()  # reading leaves nothing in the cache that must be written back
        torch.cuda.synchronize(self._device)
        if queued:
            torch.cuda._sleep(_HEAD_START)

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def in_use(self) -> int:
        return torch.cuda.memory_allocated(self._device)

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self._device)

    def free(self) -> int:
        return torch.cuda.mem_get_info(self._device)[0]


def _kilobytes(path: Path, key: str) -> int:
    """A ``key:  123 kB`` line of a file, in bytes."""
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines())
    return 1024 * int(lines[key].split()[0])


@lru_cache
def _can_reset_peak() -> bool:
    """Whether the kernel lets a process forget its peak; else the peak is of its whole life."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True
