"""Files that appear whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from typing import IO

# End of the names of files that are being written.
UNFINISHED = ".unfinished"


@contextlib.contextmanager
def atomic_open(path: str) -> Iterator[IO[bytes]]:
    """Open ``path`` for writing; it changes only when the block ends, and then at once."""
    folder, name = os.path.split(path)
    unfinished = os.path.join(folder, f".{name}{UNFINISHED}")
    try:
        with open(unfinished, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        _sync_folder(folder or ".")
    finally:
        if os.path.exists(unfinished):
            os.remove(unfinished)


def remove_unfinished(folder: str) -> None:
    """Remove what killed processes have left of :func:`atomic_open` in a folder."""
    for name in os.listdir(folder):
        if name.startswith(".") and name.endswith(UNFINISHED):
            os.remove(os.path.join(folder, name))


def _sync_folder(folder: str) -> None:
    """Have the names in a folder outlast a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
