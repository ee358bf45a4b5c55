"""train_net.py from end to end, as a user runs it, on a CPU."""

import json
import re
import shutil
import signal
import time

import pytest
from PIL import Image
from train_runs import run, start

from aff_seg.data.shapes import write_dataset


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    write_dataset(layout="cityscapes", root=root, train=4, val=2, size=(64, 128), progress=False)
    return root


@pytest.fixture(scope="module")
def resumed(shapes, tmp_path_factory):
    """A training killed in the middle and resumed: its folder, first new iteration, output."""
    output = tmp_path_factory.mktemp("train") / "out"
    process = start(shapes, output, SOLVER__MAX_ITER=100_000)
    tag = output / "last_checkpoint"
    while not (tag.exists() and tag.read_text() >= "model_0000003.pth"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    first = int(re.search(r"\d+", tag.read_text())[0]) + 1
    code, out, err = run(shapes, output, "--resume", SOLVER__MAX_ITER=first + 3)
    assert code == 0, err
    return output, first, out


def test_resume_goes_on_from_the_last_checkpoint(resumed):
    output, first, out = resumed
    assert f"Resuming from {output}/model_{first - 1:07d}.pth" in out
    assert f"Starting training from iteration {first}\n" in out
    assert f"iter {first + 3}/{first + 3}  eta 0:00:00" in out
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    assert out.count("No GPU is visible: running on the CPU.") == 1


def test_training_ends_with_table_metrics_and_curves(resumed):
    output, first, out = resumed
    header, _, line = out.splitlines()[-3:]
    assert header.split() == "dataset PQ SQ RQ PQ_th PQ_st AP AP50 mIoU".split()
    assert line.split()[0] == "cityscapes_fine_panoptic_val"
    results = json.loads((output / "results.json").read_text())
    assert set(results["cityscapes_fine_panoptic_val"]) == {"panoptic_seg", "segm", "sem_seg"}
    rows = [json.loads(row) for row in (output / "metrics.json").read_text().splitlines()]
    assert {"total_loss", "loss_ce", "loss_mask", "loss_dice", "lr"} <= rows[0].keys()
    assert "panoptic_seg/PQ" in rows[-1]
    assert list(output.glob("events.out.tfevents.*"))
    assert (output / "config.yaml").exists()
    with Image.open(output / "curves.png") as picture:
        assert min(picture.size) > 400


def test_evaluation_alone_gives_the_same_metrics(shapes, resumed, tmp_path):
    output, _, trained = resumed
    weights = output / "model_final.pth"
    code, out, err = run(shapes, tmp_path / "out", "--eval-only", MODEL__WEIGHTS=weights)
    assert code == 0, err
    assert re.search(rf"{weights}: (\d+) of \1 keys matched\.", out)
    assert out.splitlines()[-3:] == trained.splitlines()[-3:]
    evaluated, at_the_end = tmp_path / "out" / "results.json", output / "results.json"
    assert json.loads(evaluated.read_text()) == json.loads(at_the_end.read_text())


def test_two_processes_train_and_evaluate(shapes, tmp_path):
    code, out, err = run(
        shapes, tmp_path / "out", "--num-gpus", "2", "--dist-url", "auto", SOLVER__MAX_ITER=2
    )
    assert code == 0, err
    assert "World size: 2" in out
    assert "iter 2/2" in out
    assert out.splitlines()[-1].startswith("cityscapes_fine_panoptic_val")


@pytest.mark.parametrize("processes", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_misspelt_key_is_one_line_and_status_1(shapes, tmp_path, processes):
    code, out, err = run(
        shapes, tmp_path / "out", "--num-gpus", processes, "--dist-url", "auto", SOLVER__MAXITER=2
    )
    assert code == 1
    sentence = "there is no config key SOLVER.MAXITER; did you mean SOLVER.MAX_ITER?"
    assert err.splitlines()[0] == f"train_net.py: error: Command line: {sentence}"
    assert "Traceback" not in err


def test_damaged_picture_is_one_line_and_status_1(shapes, tmp_path):
    broken = tmp_path / "shapes"
    shutil.copytree(shapes, broken)
    for picture in broken.glob("cityscapes/leftImg8bit/train/*/*.png"):
        picture.write_bytes(picture.read_bytes()[:200])
    code, out, err = run(broken, tmp_path / "out", SOLVER__MAX_ITER=2, DATALOADER__NUM_WORKERS=1)
    assert code == 1
    line = err.splitlines()[-1]
    assert line.startswith(f"train_net.py: error: {broken}/cityscapes/leftImg8bit/train/")
    assert "_leftImg8bit.png cannot be read as an image" in line
    assert "Traceback" not in out + err


def test_what_only_the_second_process_stumbles_over_is_told(shapes, tmp_path):
    broken = tmp_path / "shapes"
    shutil.copytree(shapes, broken)
    picture = sorted(broken.glob("cityscapes/leftImg8bit/val/*/*.png"))[-1]
    picture.write_bytes(picture.read_bytes()[:200])
    processes = ("--num-gpus", "2", "--dist-url", "auto")
    code, _, err = run(broken, tmp_path / "out", "--eval-only", *processes)
    assert code == 1
    (line,) = [line for line in err.splitlines() if line.startswith("train_net.py: error: ")]
    assert f"{picture} cannot be read" in line
