"""Files of weights and training states: reading without running code, writing in one step."""

import os
import pickle
import re
import zipfile
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names
from torch import Tensor
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from aff_seg.atomic_file import atomic_open
from aff_seg.engine import plain_pickle
from aff_seg.errors import UserError, write_errors

# Beginnings of an archive, such as torch.save writes, and of a file that it wrote before.
ARCHIVE = b"PK"
TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
# Where files keep weights, unless they hold nothing else.
WEIGHTS_KEYS = ("model", "state_dict", "blobs")


def check_weights_exist(path: str) -> None:
    """Raise a :class:`UserError` where ``path`` is a local file and missing."""
    if "://" not in path and not os.path.isfile(path):
        raise UserError(f"Checkpoint {path} does not exist; correct its path.")


def is_intact(path: str) -> bool:
    """Whether a file of :func:`torch.save` is complete and its checksums are right."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    # Damage makes it raise errors of every kind.
    except Exception:
        return False


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a file of weights without executing anything from it.

    Args:
        path: a local file of :func:`torch.save`, safetensors, or a pickle of arrays or tensors
            such as Detectron2's.

    Returns:
        The file's dictionary, where ``model`` maps names to tensors. A file that is such a map
        itself is wrapped; ``state_dict`` is a name for it too. Names of Caffe2 become those of
        Detectron2.

    Raises:
        UserError: the file is damaged, or holds anything but tensors, arrays and plain values.
    """
    content = _read(path)
    known = WEIGHTS_KEYS if isinstance(content, dict) else ()
    key = next((key for key in known if key in content), None)
    weights = content if key is None else content[key]
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights):
        raise UserError(f"{path} holds no map from parameter names to tensors.")
    weights = {name: _tensor(path, name, value) for name, value in weights.items()}
    if any(name.endswith("_w") for name in weights) and not any("." in name for name in weights):
        weights = _names_of_detectron2(weights)
    consume_prefix_in_state_dict_if_present(weights, "module.")
    # Detectron2 would match names by similarity where a file asks for it.
    left_out = (key, "matching_heuristics")
    rest = {} if key is None else {k: v for k, v in content.items() if k not in left_out}
    return {**rest, "model": weights}


def _read(path: str) -> Any:
    try:
        with open(path, "rb") as file:
            start = file.read(len(TORCH_LEGACY))
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    if path.endswith(".safetensors"):
        return _read_safetensors(path)
    if start.startswith(ARCHIVE) and not is_intact(path):
        raise UserError(f"{path} is damaged, cut short or changed; get it again.")
    plain = start.startswith(b"\x80") and start != TORCH_LEGACY
    return _read_pickle(path) if plain else _read_torch(path)


def _tensor(path: str, name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf":
        array = np.asarray(value)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    raise UserError(
        f"{path} holds no map from parameter names to tensors: {name} is a {type(value).__name__}."
    )


def _names_of_detectron2(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of Caffe2 under the names of Detectron2, without the state of an optimizer."""
    weights = {name: w for name, w in weights.items() if not name.endswith("_momentum")}
    return convert_c2_detectron_names(weights)[0]


def _read_safetensors(path: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}.") from error


def _read_pickle(path: str) -> Any:
    with open(path, "rb") as file:
        content = file.read()
    try:
        return plain_pickle.load(content)
    except plain_pickle.ForbiddenGlobalError as error:
        load = f"pickle.load(open({path!r}, 'rb'))"
        raise _more_than_tensors(path, str(error), load) from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is damaged or no pickle of weights.") from error


def _read_torch(path: str) -> Any:
    try:
        with torch.serialization.safe_globals(plain_pickle.NUMPY_GLOBALS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"unsupported (?:global: )?global (\S+)", str(error), re.IGNORECASE)
        if name is None:
            raise UserError(
                f"{path} is damaged, or a pickle of more than tensors, which is not loaded, "
                "because that can run code."
            ) from error
        load = f"torch.load({path!r}, weights_only=False)"
        raise _more_than_tensors(path, name.group(1), load) from error
    # Files cut short, damaged or of another kind make it raise errors of every kind.
    except Exception as error:
        raise UserError(f"{path} is damaged or no file of torch.save.") from error


def _more_than_tensors(path: str, name: str, load: str) -> UserError:
    """Says how to get at the weights of a file that calls for ``name``, by way of ``load``."""
    return UserError(
        f"{path} holds more than tensors ({name}) and was not loaded, because that can run code; "
        f'if you trust where it comes from, save its weights alone with python -c "import pickle, '
        f"torch; c = {load}; torch.save({{k: c[k] for k in c if k in {WEIGHTS_KEYS}}}, "
        "'weights.pth')\" and take weights.pth."
    )


def write_checkpoint(path: str, content: dict[str, Any]) -> None:
    """Write a file of :func:`torch.save` in one step.

    Raises:
        UserError: there is no space, or whatever else hinders the system.
    """
    remedy = "make room and go on with --resume"
    with write_errors(f"checkpoint {path}", remedy), atomic_open(path) as file:
        torch.save(content, file)
