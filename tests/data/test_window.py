"""A window of a resized picture has the values that it has in the whole one."""

import numpy as np
import pytest
from detectron2.data import transforms as T
from PIL import Image

from aff_seg.data.window import ResizeAndCrop, WindowTransform


@pytest.mark.parametrize("interp", [Image.BILINEAR, Image.BICUBIC, Image.LANCZOS, Image.NEAREST])
@pytest.mark.parametrize("whole_factor", [False, True])
def test_a_window_has_the_values_of_the_whole(interp, whole_factor):
    rng = np.random.default_rng(interp)
    for _ in range(40):
        h, w = rng.integers(1, 120, 2)
        # Factors like 3/4 put many pixels right between two others.
        new_h, new_w = rng.integers(1, 250, 2)
        if whole_factor:
            factor = rng.integers(1, 9) / rng.integers(1, 9)
            new_h, new_w = max(1, int(h * factor)), max(1, int(w * factor))
        x0, y0 = rng.integers(0, new_w), rng.integers(0, new_h)
        # Also windows that reach beyond the picture.
        resize = T.ResizeTransform(h, w, new_h, new_w, interp)
        crop = T.CropTransform(x0, y0, *rng.integers(1, 250, 2))
        window = WindowTransform(resize, crop)
        image = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
        want = crop.apply_image(resize.apply_image(image))
        np.testing.assert_array_equal(window.apply_image(image), want)
        for labels in (image, image[..., 0], image[..., :2], image[:, ::-1]):
            want = crop.apply_segmentation(resize.apply_segmentation(labels))
            np.testing.assert_array_equal(window.apply_segmentation(labels), want)
        coords = rng.random((5, 2)) * (w, h)
        want = crop.apply_coords(resize.apply_coords(coords.copy()))
        np.testing.assert_array_equal(window.apply_coords(coords), want)


@pytest.mark.parametrize(
    ("resize", "crop"),
    [
        (T.ResizeShortestEdge((20, 60), 100, "range"), T.RandomCrop("absolute", (30, 40))),
        (T.ResizeShortestEdge((30,), 100, "choice"), T.RandomCrop("relative_range", (0.3, 0.6))),
        (T.ResizeScale(0.1, 2.0, 50, 50), T.FixedSizeCrop((50, 50), pad=False)),
        (T.ResizeShortestEdge((0,), 100, "choice"), T.RandomCrop("absolute", (30, 40))),
    ],
)
def test_both_augmentations_draw_as_they_do_alone(resize, crop):
    image = np.random.default_rng(0).integers(0, 256, (45, 70, 3), dtype=np.uint8)
    results = []
    for steps in ([resize, crop], [ResizeAndCrop(resize, crop)]):
        np.random.seed(3)
        pictures = []
        for _ in range(10):
            drawn = T.AugInput(image)
            T.AugmentationList(steps)(drawn)
            pictures.append(drawn.image)
        results.append((pictures, np.random.random()))
    assert results[0][1] == results[1][1]
    for one, other in zip(results[0][0], results[1][0], strict=True):
        np.testing.assert_array_equal(one, other)
