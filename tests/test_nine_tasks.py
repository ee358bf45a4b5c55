"""The ids are right: ground truth as a prediction scores 100, with shifted classes near 0.

So it is however many processes share the images.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aff_seg.data.preparation.ade20k import ADE20K
from aff_seg.data.preparation.cityscapes import CITYSCAPES
from aff_seg.data.preparation.coco import COCO
from aff_seg.data.preparation.command import main
from aff_seg.data.shapes import write_dataset

REPO = Path(__file__).parents[1]
DATASETS = {"ade20k": ADE20K, "coco": COCO, "cityscapes": CITYSCAPES}
METRICS = {
    "semantic": {"mIoU"},
    "instance": {"AP", "AP50"},
    "panoptic": {"PQ", "SQ", "RQ", "PQ_th", "PQ_st", "AP", "AP50", "mIoU"},
}


def write_raw_and_prepare(root):
    """Draw every dataset as it is downloaded and prepare it by its script."""
    for layout, dataset in DATASETS.items():
        request = {"train": 3, "val": 4, "size": (96, 128), "raw": True, "progress": False}
        write_dataset(layout=layout, root=root, **request)
        assert main(dataset, "", ["--root", str(root), "--workers", "1"]) == 0


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("nine")
    write_raw_and_prepare(root)
    return root


@pytest.fixture(scope="module")
def scores(root):
    return scores_of(root, processes=1)


def scores_of(root, processes):
    done = subprocess.run(
        [sys.executable, "tests/nine_tasks.py", str(processes)],
        capture_output=True,
        text=True,
        cwd=REPO,
        env={
            **os.environ,
            "DETECTRON2_DATASETS": str(root),
            "PYTHONPATH": str(REPO),
            "CUDA_VISIBLE_DEVICES": "",
        },
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("SCORES ")]
    return json.loads(line.removeprefix("SCORES "))


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
@pytest.mark.parametrize("dataset", DATASETS)
def test_ground_truth_scores_100_and_shifted_classes_0(dataset, task, scores):
    found = scores[f"{dataset}/{task}"]
    assert set(found["perfect"]) == METRICS[task]
    assert found["perfect"] == pytest.approx(dict.fromkeys(METRICS[task], 100))
    assert all(value < 1 for value in found["shifted"].values())


@pytest.mark.slow
def test_several_processes_find_the_same_scores(root, scores):
    shared = scores_of(root, processes=3)
    for task, kinds in scores.items():
        for kind, values in kinds.items():
            assert shared[task][kind] == pytest.approx(values, nan_ok=True), (task, kind)
        main_score = next(iter(kinds["partly"].values()))
        assert 1 < main_score < 99, task
