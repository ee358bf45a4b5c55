"""Every kind of picture is read as upright 8-bit RGB; what is no picture is named."""

import os
import struct

import cv2
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from aff_seg.errors import UserError
from aff_seg.prediction.images import read_image, rgb_array

EXIF_ORIENTATION = 274


@pytest.fixture
def picture():
    """Smooth colours, so that lossy formats change little."""
    y, x = np.mgrid[0:40, 0:64]
    return np.stack((4 * x, 6 * y, 255 - 2 * (x + y)), axis=-1).clip(0, 255).astype(np.uint8)


def read_back(path, image, **options):
    image.save(path, **options)
    read = read_image(str(path))
    assert read.dtype == np.uint8
    assert read.flags.writeable
    return read


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm"])
def test_lossless_formats_are_read_exactly(tmp_path, picture, suffix):
    read = read_back(tmp_path / f"a.{suffix}", Image.fromarray(picture))
    np.testing.assert_array_equal(read, picture)


@pytest.mark.parametrize("suffix", ["jpg", "webp", "jp2"])
def test_lossy_formats_are_read_closely(tmp_path, picture, suffix):
    read = read_back(tmp_path / f"a.{suffix}", Image.fromarray(picture), quality=95)
    assert np.abs(read.astype(int) - picture).mean() < 4


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (300, 5), (5, 300)])
def test_small_pictures(tmp_path, size):
    read = read_back(tmp_path / "a.png", Image.new("RGB", size, (10, 20, 30)))
    assert read.shape == (size[1], size[0], 3)
    assert (read == (10, 20, 30)).all()


def test_grey_becomes_rgb(tmp_path, picture):
    grey = Image.fromarray(picture).convert("L")
    read = read_back(tmp_path / "a.png", grey)
    np.testing.assert_array_equal(read, np.repeat(np.asarray(grey)[..., None], 3, axis=2))


def test_bilevel_becomes_black_and_white(tmp_path, picture):
    read = read_back(tmp_path / "a.png", Image.fromarray(picture).convert("1"))
    assert set(np.unique(read)) == {0, 255}


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_laid_on_white(tmp_path, picture, mode):
    image = Image.fromarray(picture).convert(mode)
    alpha = np.zeros(picture.shape[:2], dtype=np.uint8)
    alpha[:, :20], alpha[:, 20:40] = 255, 128
    opaque = np.asarray(image.convert("RGB"))
    image.putalpha(Image.fromarray(alpha))
    read = read_back(tmp_path / "a.png", image)
    np.testing.assert_array_equal(read[:, :20], opaque[:, :20])
    assert (read[:, 40:] == 255).all()
    half = opaque[:, 20:40] * (128 / 255) + 127
    assert np.abs(read[:, 20:40] - half).max() <= 2


def test_palettes(tmp_path, picture):
    image = Image.fromarray(picture).convert("P", palette=Image.Palette.ADAPTIVE)
    read = read_back(tmp_path / "a.png", image)
    np.testing.assert_array_equal(read, np.asarray(image.convert("RGB")))
    transparent = int(np.asarray(image)[0, 0])
    read = read_back(tmp_path / "b.png", image, transparency=transparent)
    assert (read[np.asarray(image) == transparent] == 255).all()


def test_cmyk_jpeg(tmp_path, picture):
    read = read_back(tmp_path / "a.jpg", Image.fromarray(picture).convert("CMYK"), quality=95)
    assert np.abs(read.astype(int) - picture).mean() < 4


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_not_clipped(tmp_path, picture, suffix):
    path = str(tmp_path / f"a.{suffix}")
    wide = picture.astype(np.uint16) * 256 + 77
    assert cv2.imwrite(path, wide[..., 0])
    np.testing.assert_array_equal(read_image(path), np.repeat(picture[..., :1], 3, axis=2))
    assert cv2.imwrite(path, wide[..., ::-1])
    np.testing.assert_array_equal(read_image(path), picture)


def test_16_bit_pgm(tmp_path):
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 3 1 65535\n" + bytes([0, 0, 128, 0, 255, 255]))
    np.testing.assert_array_equal(read_image(str(path))[0, :, 0], [0, 128, 255])


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (6, Image.Transpose.ROTATE_90),
        (8, Image.Transpose.ROTATE_270),
    ],
)
def test_exif_orientation_is_applied(tmp_path, picture, orientation, undo):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    lying = Image.fromarray(picture).transpose(undo)
    for suffix in ("png", "tif"):
        path = tmp_path / f"a.{suffix}"
        np.testing.assert_array_equal(read_back(path, lying, exif=exif), picture)
        with Image.open(path) as unread:
            np.testing.assert_array_equal(rgb_array(unread), picture)
    assert read_back(tmp_path / "a.jpg", lying, exif=exif).shape == picture.shape


def test_damaged_exif_does_not_matter(tmp_path, picture):
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"
    read = read_back(tmp_path / "a.jpg", Image.fromarray(picture), exif=exif)
    assert read.shape == picture.shape


@pytest.mark.parametrize("odd", [0x100, 0x11A])
def test_odd_exif_does_not_hide_the_orientation(tmp_path, picture, odd):
    # Text where a number belongs, as some cameras write it.
    turned = struct.pack("<HHIHH", EXIF_ORIENTATION, 3, 1, 6, 0)
    entries = turned + struct.pack("<HHI4s", odd, 2, 4, b"abc")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    lying = Image.fromarray(picture).transpose(Image.Transpose.ROTATE_90)
    np.testing.assert_array_equal(read_back(tmp_path / "a.png", lying, exif=exif), picture)
    assert read_back(tmp_path / "a.jpg", lying, exif=exif).shape == picture.shape


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "it is damaged, or needs more memory than there is."),
        (OverflowError("too large"), "too large."),
        (TypeError("odd"), "odd."),
    ],
)
def test_errors_of_decoders_are_told(tmp_path, picture, monkeypatch, error, sentence):
    path = tmp_path / "a.png"
    Image.fromarray(picture).save(path)

    def fail(self):
        raise error

    monkeypatch.setattr(PngImageFile, "load", fail)
    assert error_of(path).endswith(f"cannot be read as an image: {sentence}")


def test_names_with_spaces_and_other_scripts(tmp_path, picture):
    read = read_back(tmp_path / "bïld 图 名.png", Image.fromarray(picture))
    np.testing.assert_array_equal(read, picture)


def error_of(path):
    with pytest.raises(UserError) as caught:
        read_image(str(path))
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.endswith(".") and "\n" not in message
    return message


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp", "jp2", "gif"])
def test_truncated_file_is_named(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise).save(path)
    os.truncate(path, path.stat().st_size // 2)
    assert "cannot be read as an image" in error_of(path)


def test_what_is_no_picture_is_named(tmp_path):
    empty, text = tmp_path / "empty.png", tmp_path / "text.png"
    empty.touch()
    text.write_text("hello")
    assert "is empty (zero bytes)" in error_of(empty)
    assert "is not an image of a known format" in error_of(text)
    assert "No such file" in error_of(tmp_path / "gone.png")
    assert "Is a directory" in error_of(tmp_path)


def test_pixels_of_unknown_range_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(path)
    assert "floating point" in error_of(path)
    Image.fromarray(np.full((4, 4), 70000, dtype=np.int32)).save(path)
    assert "70000" in error_of(path)
