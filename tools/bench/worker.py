"""Ways that run in a process of their own, for its memory, its operators and its time limit."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import torch

from bench.measure import Sample, Way, WayError, in_brief

SWITCH = "AFF_SEG_OPS"


class TooSlow(WayError):
    """Nothing came from a process in time."""


class Child:
    """A process started for some work, and the pipe to it.

    Args:
        target: module-level function that serves the other end of the pipe.
        arguments: of ``target``, after the connection.
        alone: it starts no processes itself, and ends with this one whatever happens.
    """

    def __init__(self, target: Callable[..., None], *arguments: object, alone: bool = True):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, *arguments)
        self._process = context.Process(target=target, args=arguments, daemon=alone)
        self._process.start()
        theirs.close()

    def send(self, message: object) -> None:
        self._connection.send(message)

    def receive(self, limit: float) -> object:
        """The next message.

        Raises:
            TooSlow: it does not come within ``limit`` seconds, which ends the process.
            WayError: the process has ended, or the message is a :class:`WayError`.
        """
        if not self._connection.poll(limit):
            self._process.kill()
            raise TooSlow(f"not done in {limit:.0f} s")
        try:
            reply = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            code = self._process.exitcode
            raise WayError(f"its process ended with status {code}") from None
        if isinstance(reply, WayError):
            raise reply
        return reply

    def close(self) -> None:
        """End the process, which leaves by itself unless it is at work."""
        self._connection.close()
        self._process.join(5)
        self._process.terminate()
        self._process.join()


class Worker:
    """A way whose work is built and run by a process started for it.

    Args:
        build: module-level function that makes the way there.
        reference: whether that process computes with the reference operators.
        limit: seconds that building, and each run, may take.
        arguments: of ``build``.
    """

    def __init__(
        self,
        build: Callable[..., Way],
        *,
        reference: bool = False,
        limit: float = 900,
        **arguments: object,
    ):
        self._limit = limit
        self._failure: WayError | None = None
        with _operators(reference):
            self._child = Child(_serve, build, arguments)

    def __call__(self, memory: bool) -> dict[str, Sample]:
        if self._failure is not None:
            raise self._failure
        self._child.send(memory)
        try:
            return self._child.receive(self._limit)
        except WayError as error:
            self._failure = error
            raise

    def wait(self) -> None:
        """Return when the way is built there, or has failed; its runs will say why."""
        try:
            self._child.receive(self._limit)
        except WayError as error:
            self._failure = error

    def close(self) -> None:
        """End the process."""
        self._child.close()


@contextmanager
def working(workers: dict[str, Worker]) -> Iterator[dict[str, Worker]]:
    """Wait until all workers are ready; end them afterwards."""
    try:
        for worker in workers.values():
            worker.wait()
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


@contextmanager
def _operators(reference: bool) -> Iterator[None]:
    """The variable that chooses the operators, as a process started now will find it."""
    before = os.environ.pop(SWITCH, None)
    if reference:
        os.environ[SWITCH] = "reference"
    try:
        yield
    finally:
        os.environ.pop(SWITCH, None)
        if before is not None:
            os.environ[SWITCH] = before


def _serve(connection: Connection, build: Callable[..., Way], arguments: dict) -> None:
    torch.manual_seed(0)
    try:
        way = build(**arguments)
        connection.send(None)
        while True:
            connection.send(way(connection.recv()))
    except EOFError:
        return
    except Exception as error:
        connection.send(WayError(in_brief(error)))
