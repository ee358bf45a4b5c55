"""Random states: read and set, kept aside, and fixed for runs that repeat bit for bit."""

import contextlib
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

# What cuBLAS needs for results that repeat.
CUBLAS_WORKSPACE = ":4096:8"


def random_state(*, gpu: bool = True) -> dict[str, Any]:
    """States of this process's generators, as tensors and plain values.

    Python's, NumPy's and torch's on the CPU, and with ``gpu`` that of the current GPU where CUDA
    is in use.
    """
    kind, words, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(words.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if gpu and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Set what :func:`random_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, words, *rest = state["numpy"]
    np.random.set_state((kind, words.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextlib.contextmanager
def kept_random_state(*, gpu: bool = True) -> Iterator[None]:
    """Whatever is drawn within does not change what is drawn afterwards."""
    state = random_state(gpu=gpu)
    try:
        yield
    finally:
        set_random_state(state)


@contextlib.contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Within, draws on the CPU depend on ``numbers`` alone; afterwards all is as before."""
    words = np.random.SeedSequence(numbers).generate_state(4)
    with kept_random_state(gpu=False):
        random.seed(int(words[0]))
        np.random.seed(words[1])
        # torch.manual_seed would seed the GPUs, too.
        torch.default_generator.manual_seed(int(words[2]) << 32 | int(words[3]))
        yield


def make_deterministic() -> None:
    """Have torch use algorithms that repeat bit for bit, or raise where there is none.

    Call it before the first computation on a GPU.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
