"""The ids are right: ground truth as a prediction scores 100, with shifted classes near 0.

So it is however many processes share the images.
"""

import json
import os
import socket
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
SIZE = (96, 128)
METRICS = {
    "semantic": {"mIoU"},
    "instance": {"AP", "AP50"},
    "panoptic": {"PQ", "SQ", "RQ", "PQ_th", "PQ_st", "AP", "AP50", "mIoU"},
}


def write_raw_and_prepare(root):
    """Draw every dataset as it is downloaded and prepare it by its script."""
    for layout, dataset in DATASETS.items():
        request = {"train": 3, "val": 4, "size": SIZE, "raw": True, "progress": False}
        write_dataset(layout=layout, root=root, **request)
        assert main(dataset, "", ["--root", str(root), "--workers", "1"]) == 0


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("nine")
    write_raw_and_prepare(root)
    return root


@pytest.fixture(scope="module")
def scores(root):
    return scores_of([start(root, processes=1)])


def start(root, processes, **variables):
    return subprocess.Popen(
        [sys.executable, "tests/nine_tasks.py", str(processes)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPO,
        env={
            **os.environ,
            "DETECTRON2_DATASETS": str(root),
            "PYTHONPATH": str(REPO),
            "CUDA_VISIBLE_DEVICES": "",
            **variables,
        },
    )


def start_on_machines(root, count):
    """Processes that take themselves for machines of their own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    places = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    places |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    return [start(root, 1, RANK=str(rank), **places) for rank in range(count)]


def scores_of(started):
    outputs = [process.communicate() for process in started]
    assert all(process.returncode == 0 for process in started), outputs
    lines = [line for out, _ in outputs for line in out.splitlines() if line.startswith("SCORES ")]
    (line,) = lines
    return json.loads(line.removeprefix("SCORES "))


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
@pytest.mark.parametrize("dataset", DATASETS)
def test_ground_truth_scores_100_and_shifted_classes_0(dataset, task, scores):
    found = scores[f"{dataset}/{task}"]
    assert set(found["perfect"]) == METRICS[task]
    assert found["perfect"] == pytest.approx(dict.fromkeys(METRICS[task], 100))
    assert all(value < 1 for value in found["shifted"].values())


@pytest.mark.slow
@pytest.mark.parametrize("machines", [1, 2])
def test_several_processes_find_the_same_scores(root, scores, machines):
    alone = machines == 1
    shared = scores_of([start(root, 3)] if alone else start_on_machines(root, machines))
    for task, kinds in scores.items():
        for kind, values in kinds.items():
            assert shared[task][kind] == pytest.approx(values, nan_ok=True), (task, kind)
        main_score = next(iter(kinds["partly"].values()))
        assert 1 < main_score < 99, task
