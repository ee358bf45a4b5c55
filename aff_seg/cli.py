"""What the command line programs share."""

import contextlib
import sys
import time
from collections.abc import Iterator

from detectron2.utils import comm

from aff_seg.errors import UserError

# Seconds in which the other processes are ended where the first of a machine has spoken.
PATIENCE = 3.0


@contextlib.contextmanager
def plain_errors(program: str) -> Iterator[None]:
    """Turn a :class:`UserError` into one line on stderr and exit status 1.

    Of several processes on a machine, which usually stumble over the same thing, the first
    one speaks at once, and another where it is still there a while later. Ctrl-C ends the program
    with status 130 and no traceback.

    Args:
        program: name at the beginning of the line.
    """
    try:
        yield
    except UserError as error:
        if comm.get_local_rank() > 0:
            time.sleep(PATIENCE)
        print(f"{program}: error: {_sentence(error)}", file=sys.stderr, flush=True)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)


def _sentence(error: UserError) -> str:
    """The message without the traceback that a data loading process puts before it."""
    text = str(error)
    marker = f"{UserError.__module__}.{UserError.__qualname__}: "
    return text.rsplit(marker, 1)[-1].strip()
