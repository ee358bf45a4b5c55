"""The parts of ``tools/benchmark.py``, one idea a module."""
