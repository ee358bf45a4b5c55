"""Work on many images at a time, in several processes; a failure is told and the rest goes on."""

import contextlib
import fcntl
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from aff_seg.errors import UserError

J = TypeVar("J")
_LARGEST_CHUNK = 16
_LOCK = ".preparing"
# A run that was killed leaves processes that end a moment later.
_PATIENCE = 5.0


def run_jobs(
    work: Callable[[J], Any],
    jobs: Sequence[J],
    *,
    workers: int,
    title: str,
    done: int = 0,
    progress: bool = True,
) -> Iterator[tuple[J, Any, str | None]]:
    """Call ``work`` for each job, in any number of processes, and yield the results in order.

    Args:
        work: a function that can be pickled.
        jobs: its arguments; their ``str`` is the file to name in unforeseen errors.
        workers: number of processes; 1 works in this one.
        title: of the progress bar.
        done: jobs done before, which the bar counts.
        progress: whether to show the bar.

    Yields:
        (job, result, None), or (job, None, a sentence on what went wrong).

    Raises:
        UserError: a process died.
    """
    attempt = partial(_attempt, work)
    with contextlib.ExitStack() as stack:
        # The processes begin before the bar does, whose thread they should not inherit.
        if workers > 1 and len(jobs) > 1:
            results = stack.enter_context(_pool_map(attempt, jobs, min(workers, len(jobs))))
        else:
            results = map(attempt, jobs)
        total = done + len(jobs)
        bar = stack.enter_context(tqdm(total=total, initial=done, desc=title, disable=not progress))
        for job in jobs:
            try:
                value, fault = next(results)
            except BrokenProcessPool as error:
                raise UserError(
                    f"A process of {title!r} died, perhaps for want of memory; run the command "
                    "again with fewer --workers, it goes on where it stopped."
                ) from error
            bar.update()
            yield job, value, fault


def _attempt(work: Callable[[J], Any], job: J) -> tuple[Any, str | None]:
    try:
        return work(job), None
    except UserError as error:
        return None, str(error)
    # Whatever else a damaged file brings about is told with its name, and the rest goes on.
    except Exception as error:
        return None, f"{job} cannot be used ({type(error).__name__}: {error})."


@contextlib.contextmanager
def _pool_map(work: Callable[[J], Any], jobs: Sequence[J], workers: int) -> Iterator[Iterator[Any]]:
    chunk = max(1, min(_LARGEST_CHUNK, len(jobs) // (4 * workers)))
    pool = ProcessPoolExecutor(workers, initializer=_start_worker)
    try:
        yield pool.map(work, jobs, chunksize=chunk)
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the first process, and end when it has ended, killed or not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Make sure that no other run writes below ``folder``, or raise a :class:`UserError`."""
    path = folder / _LOCK
    deadline = time.monotonic() + _PATIENCE
    while (file := _try_lock(path)) is None:
        if time.monotonic() > deadline:
            raise UserError(f"Another run is preparing {folder}; wait until it has finished.")
        time.sleep(0.1)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def _try_lock(path: Path) -> int | None:
    """Lock a file, or return None while another process holds it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The holder before may have deleted the file between opening and locking it.
        if os.path.samestat(os.fstat(file), os.stat(path)):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(file)
    return None
