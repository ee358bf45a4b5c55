"""Make the label images of ADE20K that Detectron2 reads: `annotations_detectron2`.

The published ones count classes from 1 and mark other pixels with 0; these count from 0 and mark
them with 255. Files that are there already are left as they are.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from aff_seg.cli import plain_errors
from aff_seg.engine.checkpoint_file import atomic_open
from aff_seg.errors import UserError

SPLITS = ("training", "validation")


def prepare(folder: Path) -> int:
    """Convert both splits below ``ADEChallengeData2016``; returns the number of files written.

    Raises:
        UserError: a folder is missing, or a file is no label image.
    """
    written = 0
    for split in SPLITS:
        source, target = folder / "annotations" / split, folder / "annotations_detectron2" / split
        if not source.is_dir():
            raise UserError(f"{source} is missing; unpack ADE20K as datasets/README.md shows.")
        target.mkdir(parents=True, exist_ok=True)
        for path in tqdm(sorted(source.glob("*.png")), split):
            if not (target / path.name).exists():
                labels = _read(path)
                with atomic_open(str(target / path.name)) as file:
                    Image.fromarray(labels - np.uint8(1)).save(file, format="PNG")
                written += 1
    return written


def _read(path: Path) -> np.ndarray:
    try:
        labels = np.asarray(Image.open(path))
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}).") from error
    if labels.dtype != np.uint8 or labels.ndim != 2 or labels.max() > 150:
        raise UserError(f"{path} is no label image of ADE20K: 8 bits, one channel, 0 to 150.")
    return labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.path.join(os.getenv("DETECTRON2_DATASETS", "datasets"), "ADEChallengeData2016")
    parser.add_argument(
        "--root", type=Path, default=default, metavar="DIR", help=f"default {default}"
    )
    with plain_errors(Path(sys.argv[0]).name):
        print(f"Wrote {prepare(parser.parse_args().root)} label images.")


if __name__ == "__main__":
    main()
