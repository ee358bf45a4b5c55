"""Stopping on a signal: after the step and with a checkpoint, or where all is saved at once."""

import contextlib
import os
import signal
import types
from collections.abc import Callable, Iterator

# EX_TEMPFAIL of sysexits.h: to be tried again.
STOPPED_STATUS = 75
# scancel and most others send SIGTERM; sbatch --signal=USR1@60 warns before the time is up;
# submitit asks for SIGUSR2.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Stopped(SystemExit):
    """Ends a training that was asked to stop and has written a checkpoint."""

    def __init__(self) -> None:
        super().__init__(STOPPED_STATUS)


class StopRequest:
    """Notes the signals that ask a process to stop."""

    def __init__(self) -> None:
        self.name: str | None = None

    def listening(self) -> contextlib.AbstractContextManager:
        """Within, such signals are noted, and do nothing else."""
        return _handled_by(self._note)

    @contextlib.contextmanager
    def heeded_at_once(self) -> Iterator[None]:
        """Within, such signals end the process, also one that was noted before."""
        with ending_at_once():
            if self():
                os._exit(STOPPED_STATUS)
            yield

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        self.name = signal.Signals(number).name

    def __call__(self) -> bool:
        """Whether the process was asked to stop."""
        return self.name is not None


def ending_at_once() -> contextlib.AbstractContextManager:
    """Within, such signals end the process with its status: for where nothing is to be saved."""
    return _handled_by(lambda number, frame: os._exit(STOPPED_STATUS))


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, types.FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def ignore_signals() -> None:
    """From now on such signals do nothing.

    For processes that the training ends itself: batch systems may signal every process of a job.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
