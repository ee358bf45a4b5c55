"""All 63 configs train and are scored on miniatures of their datasets."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_configs import VARIANTS
from test_nine_tasks import DATASETS, METRICS, REPO

from aff_seg.data.preparation.command import main
from aff_seg.data.shapes import write_dataset


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Drawn as downloaded, prepared by the scripts."""
    root = tmp_path_factory.mktemp("miniatures")
    for layout, dataset in DATASETS.items():
        request = {"train": 4, "val": 2, "size": (96, 128), "raw": True, "progress": False}
        write_dataset(layout=layout, root=root, **request)
        assert main(dataset, "", ["--root", str(root), "--workers", "1"]) == 0
    return root


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_task_of_a_variant_trains_and_scores(variant, shapes, tmp_path):
    done = subprocess.run(
        [sys.executable, "tests/all_configs.py", variant, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=REPO,
        env={**os.environ, "DETECTRON2_DATASETS": str(shapes), "PYTHONPATH": str(REPO)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("SCORES ")]
    scores = json.loads(line.removeprefix("SCORES "))
    assert len(scores) == 9
    for task, found in scores.items():
        assert set(found) == METRICS[Path(task).name]
        assert all(math.isfinite(value) for value in found.values()), task
        assert (tmp_path / task / "model_final.pth").is_file()
