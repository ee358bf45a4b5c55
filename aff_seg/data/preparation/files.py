"""Reading and writing the files of a dataset; what cannot be read is named."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from aff_seg.atomic_file import atomic_open
from aff_seg.errors import UserError, write_errors

# What Pillow raises for damaged files of various formats.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError)


def list_files(folder: Path, pattern: str) -> list[Path]:
    """Files that match, sorted; hidden ones, such as those of an interrupted run, are left out."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def read_image(path: Path) -> np.ndarray:
    """Pixels as they are stored: (H, W) or (H, W, channels)."""
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing.") from error
    except _DAMAGE as error:
        raise UserError(f"{path} cannot be read as an image ({error}).") from error


def read_colours(path: Path) -> np.ndarray:
    """Pixels of an image in colour: uint8 (H, W, 3)."""
    colours = read_image(path)
    if colours.dtype != np.uint8 or colours.ndim != 3 or colours.shape[2] != 3:
        raise UserError(f"{path} is no image of three channels with 8 bits.")
    return colours


def read_labels(path: Path) -> np.ndarray:
    """Pixels of a label image: uint8 (H, W)."""
    labels = read_image(path)
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise UserError(f"{path} is no label image: one channel with 8 bits.")
    return labels


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width), from the file's head only."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing.") from error
    except _DAMAGE as error:
        raise UserError(f"{path} cannot be read as an image ({error}).") from error


def check_picture(path: Path) -> None:
    """Read a picture to its end, which finds files cut short."""
    try:
        with Image.open(path) as image:
            # A JPEG is read at an eighth of its size: whole, but not in every detail.
            image.draft("L", (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing.") from error
    except _DAMAGE as error:
        raise UserError(f"{path} cannot be read as an image ({error}).") from error


def require_size(path: Path, found: tuple[int, ...], picture: Path) -> None:
    """Raise a :class:`UserError` unless an image at ``path`` is of the size of its picture.

    Args:
        path: of the image.
        found: its shape, height and width first.
        picture: file to compare with.
    """
    height, width = picture_size(picture)
    if found[:2] != (height, width):
        raise UserError(
            f"{path} is {found[1]} x {found[0]} pixels, but its picture {picture.name} is "
            f"{width} x {height}."
        )


@contextlib.contextmanager
def _write(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears whole or not at all."""
    remedy = "free some space there or correct its permissions"
    with write_errors(str(path), remedy), atomic_open(str(path)) as file:
        yield file


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 (H, W) or (H, W, 3) pixels, whole or not at all."""
    with _write(path) as file:
        Image.fromarray(pixels).save(file, format="PNG")


def read_json(path: Path) -> Any:
    """Content of a JSON file."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing.") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged or no JSON file ({error}).") from error


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    with _write(path) as file:
        file.write(json.dumps(content, sort_keys=True).encode())
