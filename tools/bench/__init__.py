"""The parts of ``tools/benchmark.py``, one idea a module."""

import time

#: When the program began, before the libraries that take seconds to load.
STARTED = time.perf_counter()
