"""Time and peak memory of calls, several ways of doing a thing taking turns.

A way is a function of one flag, ``memory``: it runs once and returns a :class:`Sample` for each
part of the work. Its first run, with ``memory`` set, also warms it up.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from bench.clocks import clock


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


def in_brief(error: Exception) -> str:
    """The first words of an error."""
    first, *others = (str(error).strip() or type(error).__name__).splitlines()
    if first.endswith(":") and others:  # the compiler's, around another
        first = f"{first} {others[0]}"
    return first[:100]


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
        queued: leave out the host's part: a GPU starts when it has got the call.
    """

    def __init__(self, device: torch.device, memory: bool, *, queued: bool = False):
        self._clock, self._memory = clock(device), memory
        self._laps: list[tuple[str, object, object, int | None]] = []
        self._clock.ready(queued)
        if memory:
            self._clock.reset_peak()
            self._before = self._clock.in_use()
        self._start = self._clock.mark()

    def lap(self, name: str) -> None:
        """End the lap ``name``; the next one starts here."""
        end = self._clock.mark()
        peak = None
        if self._memory:
            peak = max(0, self._clock.peak() - self._before)
            self._clock.reset_peak()
        self._laps.append((name, self._start, end, peak))
        self._start = self._clock.mark() if self._memory else end

    @property
    def samples(self) -> dict[str, Sample]:
        """All laps so far, when the device has done them."""
        return {
            name: Sample(self._clock.seconds(start, end), peak)
            for name, start, end, peak in self._laps
        }


def single(call: Callable[[], object], device: torch.device, *, queued: bool = False) -> Way:
    """A way of one part, named "", from a plain call; see :class:`Stopwatch`."""

    def way(memory: bool) -> dict[str, Sample]:
        watch = Stopwatch(device, memory, queued=queued)
        call()
        watch.lap("")
        return watch.samples

    return way


def lazily(build: Callable[[], Way]) -> Way:
    """A way that is built by its first run, which fails if that does."""
    built = cache(build)
    return lambda memory: built()(memory)


def combine(samples: dict[str, Sample], names: tuple[str, ...]) -> Sample:
    """Several laps as one: the sum of their seconds, the largest of their peaks."""
    parts = [samples[name] for name in names]
    peaks = [part.peak for part in parts if part.peak is not None]
    return Sample(sum(part.seconds for part in parts), max(peaks, default=None))


def take_turns(
    ways: dict[str, Way], runs: int, patience: float, share: float = math.inf
) -> tuple[dict[str, dict[str, Figure]], dict[str, str]]:
    """Run all ways in turn, again and again.

    Args:
        ways: name to way.
        runs: runs of each that count, after one that does not.
        patience: no new round starts after so many seconds. A way whose first run takes longer
            than this is not run again: its first run counts.
        share: a way whose turns have taken so many seconds gets no more.

    Returns:
        figures by way and part; for each way that could not be measured, why.
    """
    first, counted, reasons = {}, {name: [] for name in ways}, {}
    spent = dict.fromkeys(ways, 0.0)

    def run(name: str, memory: bool) -> dict[str, Sample] | None:
        try:
            return ways[name](memory)
        except Exception as error:  # whatever it is, the other ways go on
            reasons[name] = in_brief(error)

    for name in ways:
        if (samples := run(name, True)) is not None:
            first[name] = samples
            if max(sample.seconds for sample in samples.values()) > patience:
                counted[name].append(samples)
    again = [name for name in first if not counted[name]]
    started = time.perf_counter()
    for count in range(runs):
        if count and time.perf_counter() - started > patience:
            break
        for name in again:
            if name in reasons or spent[name] > share:
                continue
            turn = time.perf_counter()
            if (samples := run(name, False)) is not None:
                counted[name].append(samples)
            spent[name] += time.perf_counter() - turn
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
    return clock(device).free()
