"""Errors shown to a user as one sentence."""

import contextlib
from collections.abc import Iterator

import torch


class UserError(ValueError):
    """Bad input, told in one sentence that names it and says what to do.

    The command line programs print it without a traceback and exit with status 1.
    """


@contextlib.contextmanager
def enough_memory(otherwise: str) -> Iterator[None]:
    """Raise a :class:`UserError` that says ``otherwise`` where memory, of any device, runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # On a CPU, PyTorch's error is of no type of its own.
        cpu = "can't allocate memory" in str(error)
        if not (cpu or isinstance(error, torch.OutOfMemoryError | MemoryError)):
            raise
        raise UserError(otherwise) from error


@contextlib.contextmanager
def write_errors(what: str, remedy: str = "") -> Iterator[None]:
    """Raise a :class:`UserError` where the system refuses to write.

    Args:
        what: that cannot be written then, as the sentence calls it, such as a path.
        remedy: what to do, said after the system's reason.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        # Saving with torch hides the system's error behind one of its own.
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        advice = f"; {remedy}" if remedy else ""
        raise UserError(f"Cannot write {what}: {reason.strerror or reason}{advice}.") from error
