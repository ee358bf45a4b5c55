"""A window of a resized picture, for which the rest of it is never made."""

import numpy as np
from detectron2.data import transforms as T
from PIL import Image

# Pixels to each side that the widest of Pillow's filters looks at.
_REACH = 3


class ResizeAndCrop(T.Augmentation):
    """What a resizing augmentation and then a cropping one do, with the same draws and values.

    Args:
        resize: gives a ``ResizeTransform`` or a ``NoOpTransform``.
        crop: needs to know no more than the size of the picture, and gives a ``CropTransform``.
    """

    def __init__(self, resize: T.Augmentation, crop: T.Augmentation):
        super().__init__()
        self._resize, self._crop = resize, crop

    def get_transform(self, image: np.ndarray) -> T.Transform:
        resize = self._resize.get_transform(image)
        if not isinstance(resize, T.ResizeTransform):
            return self._crop.get_transform(image)
        size = (resize.new_h, resize.new_w, *image.shape[2:])
        crop = self._crop.get_transform(np.broadcast_to(image.dtype.type(0), size))
        if isinstance(crop, T.TransformList):
            (crop,) = crop.transforms
        return WindowTransform(resize, crop)


class WindowTransform(T.Transform):
    """``crop`` after ``resize``, of bytes."""

    def __init__(self, resize: T.ResizeTransform, crop: T.CropTransform):
        super().__init__()
        self._resize, self._crop = resize, crop
        right, below = min(crop.x0 + crop.w, resize.new_w), min(crop.y0 + crop.h, resize.new_h)
        self._columns, self._rows = slice(crop.x0, right), slice(crop.y0, below)

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """``(h, w, 3)`` uint8.

        Pillow resizes rows, then columns; both are done on what the window needs of them.
        """
        resize, columns, rows = self._resize, self._columns, self._rows
        scale = resize.h / resize.new_h
        margin = _REACH * max(scale, 1.0) + 1
        first = max(0, int(rows.start * scale - margin))
        last = min(resize.h, int(rows.stop * scale + margin) + 1)
        wide = Image.fromarray(image[first:last]).resize(
            (resize.new_w, last - first), resize.interp
        )
        width = columns.stop - columns.start
        # Rows beyond those are not looked at, but the height tells where the others lie.
        high = Image.new(wide.mode, (width, resize.h))
        high.paste(wide.crop((columns.start, 0, columns.stop, last - first)), (0, first))
        resized = high.resize((width, resize.new_h), resize.interp)
        return np.asarray(resized.crop((0, rows.start, width, rows.stop)))

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """``(h, w)`` or ``(h, w, C)``, of any type."""
        rows = _nearest(self._resize.h, self._resize.new_h)[self._rows]
        columns = _nearest(self._resize.w, self._resize.new_w)[self._columns]
        needed = segmentation[rows[0] : rows[-1] + 1]
        return needed.take(columns, axis=1).take(rows - rows[0], axis=0)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """``(N, 2)`` (x, y), changed in place."""
        return self._crop.apply_coords(self._resize.apply_coords(coords))


def _nearest(count: int, new: int) -> np.ndarray:
    """Which of ``count`` pixels of a line Pillow takes for each of ``new``."""
    line = Image.fromarray(np.arange(count, dtype=np.int32)[None])
    return np.asarray(line.resize((new, 1), Image.Resampling.NEAREST))[0].astype(np.intp)
