"""Drawn datasets of the sizes of the real ones, for as long as they are needed."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

from aff_seg.data.shapes import write_dataset

# (h, w) of the images of every dataset; those of the first two are of many sizes.
SIZES = {"ade20k": (512, 683), "coco": (480, 640), "cityscapes": (1024, 2048)}
QUICK_SIZE = (64, 96)
IMAGES, QUICK_IMAGES = 8, 2
ROOT = "DETECTRON2_DATASETS"


def size_of(task: str, quick: bool) -> tuple[int, int]:
    """(h, w) of the images of ``<dataset>/<task>``."""
    return QUICK_SIZE if quick else SIZES[task.split("/")[0]]


@contextmanager
def drawn(layouts: Iterable[str], quick: bool) -> Iterator[None]:
    """Within, processes that are started find these datasets, drawn, a few images of each."""
    before = os.environ.get(ROOT)
    with TemporaryDirectory(prefix="aff_seg_") as root:
        for layout in layouts:
            size, count = size_of(layout, quick), QUICK_IMAGES if quick else IMAGES
            write_dataset(layout=layout, root=root, train=count, val=1, size=size, progress=False)
        os.environ[ROOT] = root
        try:
            yield
        finally:
            os.environ.pop(ROOT)
            if before is not None:
                os.environ[ROOT] = before
