"""`tools/benchmark.py --data --step`: its short form, and how it tells stages from outside."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from aff_seg.data import build_train_mapper, labels, mappers
from aff_seg.randomness import seeded

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture
def load(monkeypatch):
    """A function from a name to that module of ``tools``."""
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What a short run writes."""
    output = tmp_path_factory.mktemp("report") / "training.json"
    command = [sys.executable, "tools/benchmark.py", "--data", "--step", "--quick"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [*command, "--output", str(output)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "images/s per worker" in done.stdout
    assert output.with_suffix(".txt").read_text() in done.stdout
    return json.loads(output.read_text())


def seconds(report, section):
    """Of each row of ours, by task or model and then by part."""
    found = {}
    for row in report["rows"]:
        if row["section"] == section and row["way"] == "ours":
            what, part = row["what"].split(": ")
            found.setdefault(what, {})[part] = row["seconds"]
    return found


def test_stages_of_every_mapper_add_up(report):
    found = seconds(report, "data loading, one image")
    assert {what.split(", ")[1] for what in found} >= {"mask_former_semantic", "coco_instance_lsj"}
    for parts in found.values():
        whole, worker = parts.pop("whole mapper"), parts.pop("one worker process")
        assert worker > 0 and sum(parts.values()) == pytest.approx(whole)
        assert {"read image", "resize and crop image", "move labels", "masks"} <= set(parts)
    assert "draw polygons, decode RLE" in found["coco/instance, coco_instance_lsj"]
    assert "colours" in found["ade20k/semantic, mask_former_semantic"]


def test_parts_of_a_step_add_up(report):
    (parts,) = seconds(report, "training step").values()
    whole = parts.pop("whole step")
    names = {"data", "forward", "criterion and matcher", "backward", "optimizer"}
    assert set(parts) == names and all(parts.values())
    assert sum(parts.values()) == pytest.approx(whole)


def test_losses_are_compared_with_the_plain_way(report):
    rows = [row for row in report["rows"] if row["section"] == "criterion and matcher"]
    assert [row["way"] for row in rows] == ["ours", "one object after the other"]
    (target,) = report["targets"]
    assert target["measured"] == rows[1]["ratio"] > 0


def test_a_stage_leaves_out_those_inside_of_it(load, monkeypatch):
    stages = load("bench.stages")
    now = SimpleNamespace(value=0.0)
    monkeypatch.setattr(stages.time, "perf_counter", lambda: now.value)
    clock = stages.StageClock()

    def spend(amount):
        now.value += amount

    with clock.stage("outer"):
        spend(1)
        clock.timed("inner", spend)(2)
        spend(4)
    spend(8)
    with clock.stage("inner"):
        spend(16)
    assert clock.seconds == {"outer": 5, "inner": 18}


def test_a_timed_mapper_does_what_it_does_untimed(load, load_config, tmp_path):
    stages = load("bench.stages")
    cfg = load_config("ade20k/panoptic/aff_mini")
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    ids = np.zeros((50, 70, 3), dtype=np.uint8)
    ids[10:, 20:, 0] = 7
    for name, content in (("picture", picture), ("ids", ids)):
        Image.fromarray(content).save(tmp_path / f"{name}.png")
    record = {
        "file_name": str(tmp_path / "picture.png"),
        "pan_seg_file_name": str(tmp_path / "ids.png"),
        "segments_info": [{"id": 7, "category_id": 3, "iscrowd": 0}],
    }
    mapper, clock = build_train_mapper(cfg), stages.StageClock()
    before = (mappers.read_picture, labels.read_picture, mapper.augmentations, mapper.labels_type)
    with seeded(1):
        want = mapper(record)
    with stages.timed_mapper(mapper, clock) as timed, seeded(1):
        got = timed(record)
    assert torch.equal(got["image"], want["image"])
    assert torch.equal(got["instances"].gt_masks, want["instances"].gt_masks)
    assert set(clock.seconds) == set(stages.STAGES) - {stages.DRAW}
    after = (mappers.read_picture, labels.read_picture, mapper.augmentations, mapper.labels_type)
    assert before == after
