"""Each of the 63 configs, in full size, trains two iterations and is evaluated on small images."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_configs import TASKS, VARIANTS, expected
from test_nine_tasks import METRICS, write_raw_and_prepare

REPO = Path(__file__).parents[1]
# What a recipe's short training changes of it: sizes of images, batch and iterations.
SHORTENED = {
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.MAX_ITER",
    "DATALOADER.NUM_WORKERS",
    "INPUT.MIN_SIZE_TRAIN",
    "INPUT.MIN_SIZE_TEST",
    "INPUT.IMAGE_SIZE",
    "INPUT.CROP.SIZE",
    "INPUT.SIZE_DIVISIBILITY",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("all")
    write_raw_and_prepare(root)
    return root


def train(root, output, task, variant):
    """What tests/two_steps.py tells; its checkpoints are large and do not stay."""
    output.mkdir()
    done = subprocess.run(
        [sys.executable, "tests/two_steps.py", task, variant, str(output)],
        capture_output=True,
        text=True,
        cwd=REPO,
        env={
            **os.environ,
            "DETECTRON2_DATASETS": str(root),
            "PYTHONPATH": str(REPO),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        },
        timeout=280,
        check=False,
    )
    shutil.rmtree(output)
    assert done.returncode == 0, done.stderr
    (line,) = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
    return json.loads(line.removeprefix("RESULT "))


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("task", TASKS)
def test_a_config_trains_and_is_evaluated(task, variant, root, tmp_path):
    found = train(root, tmp_path / "out", task, variant)
    recipe = expected(task, variant)
    assert set(found["changed"]) <= SHORTENED
    assert len(found["losses"]) == 2 and all(math.isfinite(loss) for loss in found["losses"])
    shapes, width = found["shapes"], recipe["MODEL.MASK_FORMER.HIDDEN_DIM"]
    queries = recipe["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"]
    classes = recipe["MODEL.SEM_SEG_HEAD.NUM_CLASSES"]
    assert shapes["sem_seg_head.predictor.class_embed.weight"] == [classes + 1, width]
    assert shapes["sem_seg_head.predictor.query_feat.weight"] == [queries, width]
    for stage, channels in enumerate(recipe["MODEL.AFF.EMBED_DIM"]):
        assert shapes[f"backbone.norm{stage}.weight"] == [channels]
        blocks = {name.split(".")[4] for name in shapes if f".layers.{stage}.blocks." in f".{name}"}
        assert len(blocks) == recipe["MODEL.AFF.DEPTHS"][stage]
    assert set(found["metrics"]) == METRICS[task.split("/")[1]]
    for name, value in found["metrics"].items():
        assert 0 <= value <= 100, name
    print(f"{task}/aff_{variant}: {found['seconds']:.1f} s, {found['losses']}")
