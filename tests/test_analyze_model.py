"""The program that says what a model costs."""

import os
import re
import subprocess
import sys

import pytest

# Published for one image of 512x512 by fvcore.
ADE20K_GFLOPS = {
    "mini": 48.3,
    "mini_1_5th": 39.9,
    "tiny": 64.6,
    "tiny_1_5th": 51.1,
    "small": 87.0,
    "small_1_5th": 67.2,
}
QUICK = ("--config-file", "configs/quick/shapes_cityscapes_panoptic.yaml", "--size", "64", "96")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "tools/analyze_model.py", *arguments],
        **{"capture_output": True, "text": True, "check": False},
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
    )


def total(output: str) -> tuple[int, float]:
    found = re.fullmatch(r"total: (\d+) parameters, (\d+\.\d) GFLOPs", output.splitlines()[-1])
    return int(found[1]), float(found[2])


@pytest.mark.parametrize("variant", ADE20K_GFLOPS)
def test_published_flops_are_met(variant):
    config = f"configs/ade20k/semantic/aff_{variant}.yaml"
    done = run("--config-file", config, "--size", "512", "512")
    assert done.returncode == 0, done.stderr
    assert total(done.stdout)[1] == pytest.approx(ADE20K_GFLOPS[variant], rel=0.05)


def test_report_tells_modules_kinds_stages_and_memory():
    done = run(*QUICK, "--depth", "1")
    assert done.returncode == 0, done.stderr
    tables = [block.splitlines() for block in done.stdout.split("\n\n")]
    modules = {line.split()[0]: int(line.split()[1]) for line in tables[0][2:]}
    assert set(modules) == {"backbone", "sem_seg_head"}
    assert sum(modules.values()) == total(done.stdout)[0]
    kinds = {re.split(r"\s{2,}", line)[0]: line.split()[-1] for line in tables[1][2:]}
    operators = {"cluster_attention", "point_conv", "shepard_interpolate", "deformable_points"}
    assert operators <= set(kinds)
    rows = [line.split()[:2] for line in tables[2][2:]]
    assert rows == [["1", "384"], ["2", "96"], ["3", "24"], ["4", "6"]]
    assert re.search(r"Activations: \d+ MiB at most at a time, computed", done.stdout)
    by_kind = sum(float(value) for value in kinds.values())
    assert by_kind == pytest.approx(total(done.stdout)[1], abs=0.06)


def test_references_count_as_the_native_operators_do():
    kinds = [
        run(*QUICK, AFF_SEG_OPS=choice).stdout.split("\n\n")[1] for choice in ("", "reference")
    ]
    assert kinds[0] and kinds[0] == kinds[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--size", "0", "96"), "--size is 0 96, but must be two numbers of at least 1."),
        (("--depth", "-1"), "--depth is -1, but must be at least 0."),
        (("--config-file", "configs/none.yaml"), "configs/none.yaml does not exist"),
        (("MODEL.AFF.DEPTH", "[1,1,1,1]"), "did you mean MODEL.AFF.DEPTHS?"),
    ],
)
def test_bad_input_is_told_in_one_sentence(change, message):
    done = run(*QUICK, *change)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("analyze_model.py: error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1
