"""Pictures from anywhere, read as 8-bit RGB."""

import struct
import warnings

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from aff_seg.errors import UserError

# Formats that Pillow decodes by itself; others, such as EPS, would start a program.
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = (
    *(".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)
# What Pillow raises for damaged files of these formats, and _to_rgb for pixels without meaning.
_DAMAGED = (
    *(OSError, SyntaxError, ValueError, TypeError, OverflowError, MemoryError, struct.error),
    Image.DecompressionBombError,
)
# What puts a picture upright, by its orientation in EXIF.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str) -> np.ndarray:
    """Read a picture upright.

    The orientation noted in EXIF is applied. Grey, palette and CMYK pictures become RGB; what
    is transparent is laid on white; 16-bit values are divided by 256. Of an animation the first
    picture is read.

    Args:
        path: a file of any of :data:`FORMATS`, whatever its name.

    Returns:
        ``(H, W, 3)`` uint8, RGB.

    Raises:
        UserError: the file is missing, empty, damaged, or not a picture.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged EXIF and large pictures
            with Image.open(path, formats=FORMATS) as image:
                return _rgb(image)
    except UnidentifiedImageError as error:
        raise UserError(f"{path} {_why_unidentified(path)}.") from error
    except _DAMAGED as error:
        raise _unreadable(path, error) from error


def rgb_array(image: Image.Image, name: str = "The PIL image") -> np.ndarray:
    """The pixels of a PIL image as of a file, see :func:`read_image`.

    Args:
        image: of any mode; its file, where it has one, may still be unread.
        name: what errors call it.
    """
    try:
        return _rgb(image)
    except _DAMAGED as error:
        raise _unreadable(name, error) from error


def _rgb(image: Image.Image) -> np.ndarray:
    image.load()  # a TIFF turns itself upright here, and its EXIF says so only then
    return np.array(_to_rgb(_upright(image)))


def _unreadable(name: str, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    if isinstance(error, MemoryError):
        reason = "it is damaged, or needs more memory than there is"
    return UserError(f"{name} cannot be read as an image: {reason.rstrip('.')}.")


def _why_unidentified(path: str) -> str:
    with open(path, "rb") as file:
        return "is not an image of a known format" if file.read(1) else "is empty (zero bytes)"


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; EXIF that cannot be read is ignored."""
    # ImageOps.exif_transpose would also write the rest of EXIF anew, and fail where that is odd.
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except _DAMAGED:
        return image
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise ValueError(f"it has {image.width} x {image.height} pixels")
    if image.mode == "F":
        raise ValueError("its pixels are floating point numbers, of which white is not known")
    if image.mode.startswith("I"):
        return Image.fromarray(_high_bytes(np.asarray(image))).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _high_bytes(values: np.ndarray) -> np.ndarray:
    """Grey of 16 bits, in whatever integer type, as 8 bits."""
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError(f"its values go from {values.min()} to {values.max()}, not 0 to 65535")
    return (values >> 8).astype(np.uint8)
