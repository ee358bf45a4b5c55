"""Stopping on a signal, after the step and with a checkpoint."""

import contextlib
import signal
import types
from collections.abc import Iterator

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

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within, such signals are noted, and do nothing else."""
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        self.name = signal.Signals(number).name

    def __call__(self) -> bool:
        """Whether the process was asked to stop."""
        return self.name is not None


def ignore_signals() -> None:
    """From now on such signals do nothing.

    For processes that the training ends itself: batch systems may signal every process of a job.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
