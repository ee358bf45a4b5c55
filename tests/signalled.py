"""train_net.py that gets a signal at a certain moment.

The variable SIGNALLED of the environment holds a method of the trainer, which of its calls, and
the name of the signal, such as ``test 2 SIGKILL``: the signal comes when that call has begun.
"""

import itertools
import os
import runpy
import signal
import sys
from pathlib import Path

from aff_seg.engine.trainer import Trainer


def signal_in(method: str, call: int, number: int) -> None:
    """Have the process get a signal in a call of a class method of the trainer."""
    inner = getattr(Trainer, method).__func__
    calls = itertools.count(1)

    def outer(cls, *args):
        if next(calls) == call:
            os.kill(os.getpid(), number)
        return inner(cls, *args)

    setattr(Trainer, method, classmethod(outer))


if __name__ == "__main__":
    method, call, name = os.environ["SIGNALLED"].split()
    signal_in(method, int(call), signal.Signals[name])
    program = str(Path(__file__).parents[1] / "train_net.py")
    sys.argv[0] = program
    runpy.run_path(program, run_name="__main__")
