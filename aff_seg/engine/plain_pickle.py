"""Pickles of arrays and tensors, read without running code.

A pickle names functions to call. Here these are the few that make arrays, tensors and ordered
dictionaries; any other name ends the reading.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

# What NumPy rebuilds arrays and scalars with; the modules that hold it have changed their names.
_REBUILD_ARRAY = np.zeros(1).__reduce__()[0]
_REBUILD_SCALAR = np.float32(0).__reduce__()[0]
_FROM_BUFFER = np.zeros(1).__reduce_ex__(5)[0]


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
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    **{f"numpy.{core}.multiarray._reconstruct": _REBUILD_ARRAY for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _REBUILD_SCALAR for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _FROM_BUFFER for core in ("core", "_core")},
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
    "torch.storage._load_from_bytes": _storage,
}

#: What :func:`torch.load` may use besides: arrays, which random states and scores are made of.
NUMPY_GLOBALS = [
    bytes,
    np.ndarray,
    np.dtype,
    *(type(np.dtype(letter)) for letter in np.typecodes["AllInteger"] + "efd?"),
    *((_ALLOWED[name], name) for name in _ALLOWED if name.startswith("numpy.") and "core" in name),
]


class ForbiddenGlobalError(pickle.UnpicklingError):
    """A pickle wants something that is not allowed; the argument is its name."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The allowed functions and types, by their full names."""
        path = f"{module}.{name}"
        if path not in _ALLOWED:
            raise ForbiddenGlobalError(path)
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
