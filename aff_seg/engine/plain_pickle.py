"""Pickles of arrays and tensors, read without running code.

A pickle names functions to call. Here these are the few that make arrays, tensors and ordered
dictionaries; any other name ends the reading. Those of NumPy are replaced by ones that make arrays
of numbers and text only, because NumPy's own take addresses in memory from a file as well.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

# Numbers and text; arrays of other types hold pointers, which a file could make up.
_KINDS = "biufcSU"


class ForbiddenGlobalError(pickle.UnpicklingError):
    """A pickle wants something that is not allowed; the argument is its name."""


class _Type:
    """Stands for :class:`numpy.dtype`, of which a file tells the code and the byte order alone."""

    def __init__(self, code: str, *_: Any):
        self.dtype = np.dtype(str(code))
        if self.dtype.kind not in _KINDS:
            raise ForbiddenGlobalError(f"numpy.dtype('{self.dtype}')")

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray):
    """Stands for :class:`numpy.ndarray`; empty until its state is set."""

    def __new__(cls) -> "_Array":
        return super().__new__(cls, (0,), np.uint8)

    def __setstate__(self, state: tuple) -> None:
        version, shape, kind, fortran, content = state
        super().__setstate__((version, shape, kind.dtype, fortran, content))


def _array(*_: Any) -> _Array:
    return _Array()


def _scalar(kind: _Type, content: bytes | str) -> np.generic:
    content = content.encode("latin1") if isinstance(content, str) else content  # of Python 2
    return np.frombuffer(content, kind.dtype, 1)[0]


def _from_buffer(content: bytes, kind: _Type, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(content, kind.dtype).reshape(shape, order=order)


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as Python 3 writes them for Python 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text encoded as {encoding}")
    return text.encode(encoding)


def _storage(content: bytes) -> Any:
    """A tensor's memory, itself a file of :func:`torch.save`."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


_ALLOWED: dict[str, Callable] = {
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _encode,
    **{f"{builtin}.bytes": bytes for builtin in ("builtins", "__builtin__")},
    "numpy.ndarray": _Array,
    "numpy.dtype": _Type,
    # The modules that hold what NumPy rebuilds arrays with have changed their names.
    **{f"numpy.{core}.multiarray._reconstruct": _array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
    "torch.storage._load_from_bytes": _storage,
}

#: What :func:`torch.load` may use besides: arrays, which random states and scores are made of.
NUMPY_GLOBALS = [
    bytes,
    *((function, name) for name, function in _ALLOWED.items() if name.startswith("numpy.")),
]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The allowed functions and types, by their full names."""
        path = f"{module}.{name}"
        if path not in _ALLOWED:
            raise ForbiddenGlobalError(repr(path)[1:-1])  # on one line
        return _ALLOWED[path]

    def persistent_load(self, _: Any) -> Any:
        raise pickle.UnpicklingError("it refers to another file")


def load(content: bytes) -> Any:
    """What a pickle holds; text of Python 2 is taken for Latin-1.

    Raises:
        ForbiddenGlobalError: it wants more than arrays, tensors and plain values.
        pickle.UnpicklingError: it is damaged, or no pickle.
    """
    try:
        return _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except pickle.UnpicklingError:
        raise
    # What unpickling raises for bytes that are none, and what functions do for wrong arguments.
    except Exception as error:
        raise pickle.UnpicklingError(str(error)) from error
