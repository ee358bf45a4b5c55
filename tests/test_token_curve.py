"""The program that measures scores and time by the share of tokens kept."""

import importlib
import itertools
import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

TOOLS = Path(__file__).parents[1] / "tools"
MODEL = ("--config-file", "quick/shapes_demo", "--weights", "demo/aff_shapes.safetensors")


@pytest.fixture
def program(monkeypatch):
    """The program, on one drawn picture, with shares in the place of scores."""
    monkeypatch.syspath_prepend(TOOLS)
    program = importlib.import_module("token_curve")
    scored = []

    def score(cfg, model):
        assert len(cfg.DATASETS.TEST) == 1
        scored.append(model.backbone.ds_rate)
        share = 100 * model.backbone.ds_rate
        return {"panoptic_seg": {"PQ": share}, "sem_seg": {"mIoU": 100 - share}}

    monkeypatch.setattr(program.Trainer, "test", score)
    monkeypatch.setattr(program, "check_datasets", lambda cfg, splits: None)
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: [{"file_name": "docs/scene.png"}])
    program.scored = scored
    return program


def error_of(program, capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        program.main([*MODEL, *arguments])
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_each_share_is_scored_and_timed_once(program, tmp_path, capsys):
    output = tmp_path / "new" / "curve.v1"
    several = (
        "--opts",
        "DATASETS.TEST",
        "('cityscapes_fine_panoptic_val', 'cityscapes_fine_panoptic_train')",
    )
    program.main([*MODEL, "--output", str(output), "--shares", "0.5", "0.125", "0.5", *several])
    rows = json.loads((tmp_path / "new" / "curve.v1.json").read_text())
    assert program.scored == [0.125, 0.5]
    assert [(row["share"], row["PQ"], row["mIoU"]) for row in rows] == [
        (0.125, 12.5, 87.5),
        (0.5, 50.0, 50.0),
    ]
    assert all(row["milliseconds"] > 0 for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == 3
    with Image.open(f"{output}.png") as picture:
        assert picture.size == (840, 540)
    assert len(list(output.parent.iterdir())) == 2


def test_what_cannot_be_measured_is_told_before_anything_is(program, tmp_path, capsys):
    output = str(tmp_path / "curve")
    wrong = error_of(program, capsys, "--output", output, "--shares", "0.5", "1.5")
    assert "above 0 and at most 1, got 1.5" in wrong
    none = error_of(program, capsys, "--output", output, "--opts", "DATASETS.TEST", "()")
    assert "names no DATASETS.TEST" in none
    (tmp_path / "file").touch()
    blocked = error_of(program, capsys, "--output", str(tmp_path / "file" / "curve"))
    assert "Cannot write --output" in blocked
    assert not program.scored


def test_the_share_stands_above_or_below_its_point(program):
    """Also where points lie close together."""
    milliseconds = (37, 39.2, 41.3, 42.2, 48.5, 54.3, 93)
    columns = zip(program.SHARES, milliseconds, strict=True)
    figure = program.draw(
        [{"share": share, "milliseconds": x, "PQ": 66} for share, x in columns], ["PQ"]
    )
    figure.canvas.draw()
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    for x, box in zip(milliseconds, boxes, strict=True):
        assert (box.x0 + box.x1) / 2 == pytest.approx(axes.transData.transform((x, 66))[0], abs=1)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
