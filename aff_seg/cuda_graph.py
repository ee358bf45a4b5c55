"""Work on a GPU captured once as a CUDA graph, then replayed without the host's part."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
_WARM_UP = 3


def captured(work: Callable[..., Result], *inputs: Tensor) -> Callable[..., Result]:
    """Capture a call on the current GPU.

    Args:
        work: a function of tensors that never waits for the device. It is called a few times on
            a stream of its own, for libraries to start up and buffers to be cached, then once
            more for the capture.
        inputs: what to call it with, tensors on the GPU.

    Returns:
        a function of tensors like ``inputs``, which it copies into memory of its own and replays
        the call. Its result is that of the capture, in the same memory every time.

    Raises:
        RuntimeError: for work that cannot be captured.
    """
    own = [x.detach().clone() for x in inputs]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            work(*own)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work(*own)

    def replay(*inputs: Tensor) -> Result:
        for mine, given in zip(own, inputs, strict=True):
            mine.copy_(given)
        graph.replay()
        return result

    return replay
