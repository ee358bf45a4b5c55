"""The program that says what a model costs."""

import importlib
import re
import sys
from pathlib import Path

import pytest
from model_costs import cost

from aff_seg import ops

TOOLS = Path(__file__).parents[1] / "tools"
# Published for one image of 512x512, by fvcore.
ADE20K_GFLOPS = {
    "mini": 48.3,
    "mini_1_5th": 39.9,
    "tiny": 64.6,
    "tiny_1_5th": 51.1,
    "small": 87.0,
    "small_1_5th": 67.2,
}
QUICK = ("--config-file", "configs/quick/shapes_cityscapes_panoptic.yaml", "--size", "64", "96")


@pytest.fixture
def run(monkeypatch, capsys):
    """A function from the program's arguments to its exit status, output and errors."""
    monkeypatch.syspath_prepend(TOOLS)
    program = importlib.import_module("analyze_model")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["analyze_model.py", *arguments])
        status = 0
        try:
            program.main()
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


def total(output: str) -> tuple[int, float]:
    found = re.fullmatch(r"total: (\d+) parameters, (\d+\.\d) GFLOPs", output.splitlines()[-1])
    return int(found[1]), float(found[2])


@pytest.mark.parametrize("variant", ADE20K_GFLOPS)
def test_published_flops_are_met(variant):
    found = cost(f"configs/ade20k/semantic/aff_{variant}.yaml", 512, 512)
    assert found.total_flops() / 1e9 == pytest.approx(ADE20K_GFLOPS[variant], rel=0.05)


def test_report_tells_modules_kinds_stages_and_memory(run):
    _, output, _ = run(*QUICK, "--depth", "1")
    tables = [block.splitlines() for block in output.split("\n\n")]
    modules = [re.split(r"\s{2,}", line) for line in tables[0][2:]]
    assert [row[0] for row in modules] == ["backbone", "sem_seg_head", "outside of these"]
    assert sum(int(row[1]) for row in modules) == total(output)[0]
    assert sum(float(row[2]) for row in modules) == pytest.approx(total(output)[1], abs=0.06)
    kinds = {re.split(r"\s{2,}", line)[0]: line.split()[-1] for line in tables[1][2:]}
    operators = {"cluster_attention", "point_conv", "shepard_interpolate", "deformable_points"}
    assert operators <= set(kinds)
    rows = [line.split()[:2] for line in tables[2][2:]]
    assert rows == [["1", "384"], ["2", "96"], ["3", "24"], ["4", "6"]]
    assert re.search(r"Activations: \d+ MiB at most at a time, computed", output)
    by_kind = sum(float(value) for value in kinds.values())
    assert by_kind == pytest.approx(total(output)[1], abs=0.06)


def test_configs_go_by_name_too_and_from_any_folder(run, monkeypatch, tmp_path):
    by_path = run(*QUICK)[1]
    monkeypatch.chdir(tmp_path)
    assert run("--config-file", "quick/shapes_cityscapes_panoptic", *QUICK[2:])[1] == by_path


def test_references_count_as_the_native_operators_do(run, monkeypatch):
    native = run(*QUICK)[1].split("\n\n")[1]
    monkeypatch.setattr(ops, "NATIVE_DEVICES", ())
    assert "cluster_attention" in native and run(*QUICK)[1].split("\n\n")[1] == native


def test_heads_of_boxes_count_whatever_random_weights_find(run):
    config = ("--config-file", "configs/detectron2/mask_rcnn_aff_tiny_fpn_3x.yaml")
    _, output, _ = run(*config, "--size", "64", "96", "TEST.DETECTIONS_PER_IMAGE", "3")
    row = re.search(r"^roi_heads.mask_head +\d+ +(\S+)", output, re.M)
    # Four convolutions of 14x14, a transposed one and one of 28x28 to 80 masks, for three boxes.
    want = 4 * 14**2 * 9 * 256**2 + 14**2 * 4 * 256**2 + 28**2 * 256 * 80
    assert float(row[1]) == pytest.approx(3 * want / 1e9, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--size", "0", "96"), "--size 0 96 has no pixel; give two numbers of at least 1."),
        (
            ("--size", "2000000", "2000000"),
            "--size 2000000 2000000 needs more memory than there",
        ),
        (("--depth", "-1"), "--depth is -1, but must be at least 0."),
        (("--config-file", "configs/none.yaml"), "There is no config configs/none.yaml; give"),
        (("MODEL.AFF.DEPTH", "[1,1,1,1]"), "did you mean MODEL.AFF.DEPTHS?"),
    ],
)
def test_bad_input_is_told_in_one_sentence(change, message, run):
    status, output, errors = run(*QUICK, *change)
    assert status == 1 and output == ""
    assert errors.startswith("analyze_model.py: error: ") and message in errors
    assert errors.count("\n") == 1
