"""Files of weights and training states: reading without running code, writing in one step."""

import contextlib
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from aff_seg.errors import UserError

# End of the names of files that are being written.
UNFINISHED = ".unfinished"


def check_weights_exist(path: str) -> None:
    """Raise a :class:`UserError` where ``path`` is a local file and missing."""
    if "://" not in path and not os.path.isfile(path):
        raise UserError(f"Checkpoint {path} does not exist; correct its path.")


def is_intact(path: str) -> bool:
    """Whether a file of :func:`torch.save` is complete and its checksums are right."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError):
        return False


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a file of :func:`torch.save` or safetensors without executing anything from it.

    Args:
        path: a local file.

    Returns:
        The file's dictionary, where ``model`` maps names to tensors. A file that is such a map
        itself is wrapped.

    Raises:
        UserError: the file is damaged, or holds anything but tensors and plain values.
    """
    content = _read_safetensors(path) if path.endswith(".safetensors") else _read_torch(path)
    checkpoint = content if isinstance(content, dict) and "model" in content else {"model": content}
    weights = checkpoint["model"]
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise UserError(f"{path} holds no map from parameter names to tensors.")
    consume_prefix_in_state_dict_if_present(weights, "module.")
    # Detectron2 would match names by similarity where a file asks for it.
    return {key: value for key, value in checkpoint.items() if key != "matching_heuristics"}


def _read_safetensors(path: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged or no safetensors file: {error}.") from error


def _read_torch(path: str) -> Any:
    if zipfile.is_zipfile(path) and not is_intact(path):
        raise UserError(f"{path} is damaged: its checksums are wrong.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"unsupported (?:global: )?global (\S+)", str(error), re.IGNORECASE)
        if name is None:
            raise UserError(
                f"{path} is damaged, or a pickle of more than tensors, which is not loaded, "
                "because that can run code."
            ) from error
        raise UserError(
            f"{path} holds more than tensors ({name.group(1)}) and was not loaded, because that "
            "can run code."
        ) from error
    # What torch.load raises for files cut short or of another kind.
    except (RuntimeError, KeyError, EOFError, ValueError, IndexError, TypeError) as error:
        raise UserError(f"{path} is damaged or no file of torch.save.") from error


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


def write_checkpoint(path: str, content: dict[str, Any]) -> None:
    """Write a file of :func:`torch.save` in one step.

    Raises:
        UserError: there is no space, or whatever else hinders the system.
    """
    try:
        with atomic_open(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        # torch raises an error of its own on top of the system's.
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        raise UserError(
            f"Cannot write checkpoint {path}: {reason.strerror}; make room and go on with --resume."
        ) from error


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
