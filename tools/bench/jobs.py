"""Rows made one job after the other, as far as time allows, none losing those of the others."""

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import torch

from bench.measure import WayError, in_brief
from bench.rows import FLOAT32, OURS, Row
from bench.worker import Child, TooSlow

OUT_OF_TIME = "not measured: out of time"
# Seconds for a job whose compilers and libraries behave.
LIMIT = 150.0


@dataclass(frozen=True)
class Job:
    """Some rows to be made.

    Attributes:
        make: module-level function that makes them.
        section, what, size, way, dtype: of the row that stands in for them if they are missing.
        arguments: of ``make``.
        limit: seconds that they may take, however much time is left.
    """

    make: Callable[..., Iterable[Row]]
    section: str
    what: str
    size: str = ""
    way: str = OURS
    dtype: str = FLOAT32
    arguments: dict = field(default_factory=dict)
    limit: float = LIMIT

    def missing(self, note: str, failed: bool) -> Row:
        """The row that says why there are no others."""
        return Row(
            *(self.section, self.what, self.size, self.way),
            note=note,
            failed=failed,
            dtype=self.dtype,
        )


class OutOfTime(Exception):
    """A job was ended because the time for all jobs is over."""


Runner = Callable[[Job, float], Iterator[Row]]


def rows_of(
    jobs: Iterable[Job], run: Runner, deadline: float, say: Callable[[str], None]
) -> Iterator[Row]:
    """Rows of the jobs in order, as they are made.

    Args:
        jobs: the most important first.
        run: who makes the rows of a job in a number of seconds.
        deadline: on ``time.perf_counter``; jobs that begin later are not done.
        say: is told what comes next.
    """
    for job in jobs:
        left = deadline - time.perf_counter()
        if left <= 0:
            yield job.missing(OUT_OF_TIME, failed=False)
            continue
        say(" ".join(filter(None, (job.section + ":", job.what, job.size))))
        try:
            yield from run(job, left)
        except OutOfTime:
            yield job.missing(OUT_OF_TIME, failed=False)
        except Exception as error:  # whatever it is, the other jobs go on
            yield job.missing(in_brief(error), failed=True)


def inline(job: Job, _left: float) -> Iterator[Row]:
    """Rows made by this process, in the time it takes."""
    yield from job.make(**job.arguments)


class Helper:
    """A process that makes the rows of many jobs.

    After a failure another one takes its place: neither a device's memory nor its error state nor a
    capture left half done can be trusted then.

    Args:
        alone: no job starts processes.
    """

    def __init__(self, alone: bool = True) -> None:
        self._alone = alone
        self._child: Child | None = None

    def __call__(self, job: Job, left: float) -> Iterator[Row]:
        end = time.perf_counter() + min(left, job.limit)
        try:
            if self._child is None:
                self._child = Child(_serve, alone=self._alone)
            self._child.send((job.make, job.arguments))
            failed = False
            while (row := self._child.receive(max(0.0, end - time.perf_counter()))) is not None:
                failed = failed or (isinstance(row, Row) and row.failed)
                yield row
            if failed:
                self.close()
        except TooSlow:
            self.close()
            if left <= job.limit:
                raise OutOfTime from None
            raise WayError(f"not done in {job.limit:.0f} s") from None
        except (WayError, OSError):
            self.close()
            raise

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.close()
            self._child = None


def _serve(connection: Connection) -> None:
    """Make rows until the other end hangs up or something fails."""
    try:
        while True:
            make, arguments = connection.recv()
            torch.manual_seed(0)
            for row in make(**arguments):
                connection.send(row)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # tells what went wrong without being noticed
                torch.cuda.empty_cache()
            connection.send(None)
    except EOFError:
        return
    except Exception as error:
        connection.send(WayError(in_brief(error)))
