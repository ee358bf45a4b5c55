"""Preparing the real datasets."""

import subprocess
import sys

import numpy as np
from PIL import Image

from aff_seg.data.shapes import write_dataset


def _run(*arguments):
    command = [sys.executable, "datasets/prepare_ade20k.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_ade20k_labels_count_from_zero(tmp_path):
    request = {"train": 2, "val": 1, "size": (48, 64), "seed": 0, "progress": False}
    write_dataset(layout="ade20k", root=tmp_path, **request)
    folder = tmp_path / "ADEChallengeData2016"
    made = sorted((folder / "annotations_detectron2").rglob("*.png"))
    before = [np.asarray(Image.open(path)) for path in made]
    for path in made[1:]:
        path.unlink()
    done = _run("--root", folder)
    assert done.returncode == 0 and "Wrote 2 label images." in done.stdout
    for path, labels in zip(made, before, strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), labels)


def test_ade20k_faults_are_named(tmp_path):
    done = _run("--root", tmp_path)
    assert done.returncode == 1 and f"{tmp_path}/annotations/training is missing" in done.stderr
    for split in ("training", "validation"):
        (tmp_path / "annotations" / split).mkdir(parents=True)
    Image.fromarray(np.full((4, 4), 200, np.uint8)).save(tmp_path / "annotations/training/a.png")
    done = _run("--root", tmp_path)
    assert done.returncode == 1 and "a.png is no label image of ADE20K" in done.stderr
