"""A training that is killed, stopped or repeated computes what it would have computed anyway."""

import json
import random
import re
import shutil
import signal
import socket
import time

import pytest
import torch
from train_runs import ROOT, run, start

from aff_seg.data.shapes import write_dataset
from aff_seg.engine.curves import read_metrics

ITERATIONS = 12
SETTINGS = {
    "SEED": 5,
    "SOLVER__MAX_ITER": ITERATIONS,
    "SOLVER__CHECKPOINT_PERIOD": 1,
    "TEST__EVAL_PERIOD": 5,
    "TEST__BEST_METRIC": "sem_seg/iIoU_sup",
    # So fast that scores move.
    "SOLVER__BASE_LR": 0.01,
    "SOLVER__WARMUP_ITERS": 0,
    "MODEL__AFF__DROP_PATH_RATE": 0.3,
    "INPUT__COLOR_AUG_SSD": True,
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    # An odd number: epochs end within batches.
    write_dataset(layout="cityscapes", root=root, train=5, val=1, size=(64, 128), progress=False)
    return root


def state_of(output, name="model_final"):
    return torch.load(output / f"{name}.pth", weights_only=True)


@pytest.fixture(scope="module")
def uninterrupted(shapes, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "out"
    begin = time.monotonic()
    code, _, err = run(shapes, output, **SETTINGS)
    assert code == 0, err
    return output, state_of(output), time.monotonic() - begin


def differences(a, b, path=""):
    """Where two states differ by a bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted({*a, *b}, key=str)
        return [d for k in keys for d in differences(a.get(k), b.get(k), f"{path}/{k}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [d for i, (x, y) in pairs for d in differences(x, y, f"{path}/{i}")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
        return [] if same and a.isnan().equal(b.isnan()) else [path]
    return [] if a == b else [path]


def test_states_that_differ_are_told_apart(uninterrupted):
    _, state, _ = uninterrupted
    assert {"model", "trainer", "iteration", "random"} <= state.keys()
    assert not differences(state, state)
    other = {**state, "random": [{**state["random"][0], "torch": torch.zeros(3)}]}
    assert differences(state, other) == ["/random/0/torch"]


@pytest.mark.slow
def test_another_seed_gives_another_training(shapes, uninterrupted, tmp_path):
    code, _, err = run(shapes, tmp_path / "out", **{**SETTINGS, "SEED": 6})
    assert code == 0, err
    changed = differences(uninterrupted[1], state_of(tmp_path / "out"))
    assert any(path.startswith("/model/backbone") for path in changed)


def scores_of(output):
    """Scores over iterations, and the best weights with their note."""
    series = read_metrics(str(output / "metrics.json"))
    scores = {name: points for name, points in series.items() if "/" in name}
    best = json.loads((output / "model_best.json").read_text())
    iterations, values = zip(*scores["sem_seg/iIoU_sup"], strict=True)
    assert iterations == (4, 9, ITERATIONS)
    assert best["value"] == max(values) > min(values)
    return {"scores": scores, "note": best, "best": state_of(output, "model_best")}


@pytest.mark.parametrize(
    ("kills", "workers"), [(2, 0), pytest.param(10, 1, marks=pytest.mark.slow)]
)
@pytest.mark.timeout(900)
def test_killed_runs_end_as_if_nothing_had_happened(
    shapes, uninterrupted, tmp_path, kills, workers
):
    _, whole, seconds = uninterrupted
    output, dice = tmp_path / "out", random.Random(kills)
    settings = {**SETTINGS, "DATALOADER__NUM_WORKERS": workers}
    for kill in range(kills):
        process = start(shapes, output, "--resume", **settings)
        try:
            # A little more than a whole run, so that the end is hit, too.
            process.communicate(timeout=dice.uniform(0.3, 1.1) * seconds)
        except Exception:
            process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), (kill, err)
    code, out, err = run(shapes, output, "--resume", **settings)
    assert code == 0, err
    assert out.splitlines()[-1].startswith("cityscapes_fine_panoptic_val")
    assert not differences(whole, state_of(output))
    assert not differences(scores_of(uninterrupted[0]), scores_of(output))
    assert not list(output.glob(".*"))


@pytest.mark.parametrize(
    ("name", "call", "last", "status"),
    [
        ("SIGTERM", 2, "model_0000009.pth", 75),
        ("SIGKILL", 3, "model_final.pth", -signal.SIGKILL),
        pytest.param("SIGKILL", 2, "model_0000009.pth", -9, marks=pytest.mark.slow),
        pytest.param("SIGTERM", 3, "model_final.pth", 75, marks=pytest.mark.slow),
    ],
)
def test_evaluations_cut_short_are_repeated(
    shapes, uninterrupted, tmp_path, name, call, last, status
):
    output = tmp_path / "out"
    options = {"launcher": (str(ROOT / "tests" / "signalled.py"),)}
    options["variables"] = {"SIGNALLED": f"test {call} {name}"}
    # Steps between a checkpoint and an evaluation are not lost.
    settings = {**SETTINGS, "SOLVER__CHECKPOINT_PERIOD": 4}
    code, _, err = run(shapes, output, **options, **settings)
    assert code == status, err
    assert (output / "last_checkpoint").read_text() == last
    code, _, err = run(shapes, output, "--resume", **settings)
    assert code == 0, err
    assert not differences(uninterrupted[1], state_of(output))
    assert not differences(scores_of(uninterrupted[0]), scores_of(output))


def test_a_signal_before_the_first_step_ends_at_once(shapes, tmp_path):
    options = {"launcher": (str(ROOT / "tests" / "signalled.py"),)}
    options["variables"] = {"SIGNALLED": "build_model 1 SIGTERM"}
    code, out, err = run(shapes, tmp_path / "out", "--resume", **options, **SETTINGS)
    assert code == 75, err
    assert "Starting training" not in out and "Traceback" not in out + err
    assert not (tmp_path / "out" / "last_checkpoint").exists()


def test_a_broken_checkpoint_falls_back_and_nothing_is_lost(shapes, uninterrupted, tmp_path):
    source, whole, _ = uninterrupted
    output = tmp_path / "out"
    shutil.copytree(source, output)
    for name in ("model_final", "model_0000011", "model_0000010"):
        path = output / f"{name}.pth"
        path.write_bytes(path.read_bytes()[:-3000])
    code, out, err = run(shapes, output, "--resume", **SETTINGS)
    assert code == 0, err
    assert "model_final.pth is damaged: trying the one before." in out
    assert re.search(r"Resuming from \S+/model_0000009.pth", out)
    assert not differences(whole, state_of(output))


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("SIGUSR1", "SIGUSR2")]


@pytest.mark.parametrize("name", ["SIGTERM", *SLOW])
def test_a_signal_saves_and_ends_with_a_status_of_its_own(shapes, tmp_path, name):
    output = tmp_path / "out"
    settings = {**SETTINGS, "SOLVER__MAX_ITER": 100_000, "SOLVER__CHECKPOINT_PERIOD": 3}
    process = start(shapes, output, DATALOADER__NUM_WORKERS=1, **settings)
    while not (output / "last_checkpoint").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.Signals[name])
    out, err = process.communicate(timeout=240)
    assert process.returncode == 75, err
    done = re.search(r"ends after iteration (\d+) with status 75; --resume goes on", out)[1]
    assert (output / "last_checkpoint").read_text() == f"model_{int(done) - 1:07d}.pth"
    assert "Traceback" not in out + err


TWO = ("--num-gpus", "2", "--dist-url", "auto")


@pytest.mark.slow
def test_two_processes_stop_together_and_resume(shapes, tmp_path):
    settings = {**SETTINGS, "TEST__EVAL_PERIOD": 0}
    code, _, err = run(shapes, tmp_path / "whole", *TWO, **settings)
    assert code == 0, err
    output = tmp_path / "out"
    process = start(shapes, output, *TWO, **settings)
    while not (output / "last_checkpoint").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    # The first process alone gets it, as from a batch system that knows no others.
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 75, err
    code, _, err = run(shapes, output, "--resume", *TWO, **settings)
    assert code == 0, err
    whole, resumed = state_of(tmp_path / "whole"), state_of(output)
    assert not differences(whole, resumed)
    assert len(whole["random"]) == 2 and differences(*whole["random"])


@pytest.mark.slow
def test_two_machines_stop_together(shapes, tmp_path):
    """Of one process each, which the programs that get signals start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    # In an evaluation the signal would end one machine at once.
    settings = {**SETTINGS, "SOLVER__MAX_ITER": 100_000, "DATASETS__TEST": "()"}
    machines = ("--num-machines", "2", "--dist-url", url, "--machine-rank")
    first, second = (start(shapes, tmp_path / "out", *machines, n, **settings) for n in "01")
    while not (tmp_path / "out" / "last_checkpoint").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    second.send_signal(signal.SIGTERM)
    for process in (first, second):
        _, err = process.communicate(timeout=240)
        assert process.returncode == 75, err


@pytest.mark.slow
def test_two_processes_end_with_the_one_that_started_them(shapes, tmp_path):
    """Even where SIGINT is ignored, as in what a script starts in the background."""
    settings = {**SETTINGS, "SOLVER__MAX_ITER": 100_000}
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = start(shapes, tmp_path / "out", *TWO, **settings)
    finally:
        signal.signal(signal.SIGINT, before)
    while not (tmp_path / "out" / "last_checkpoint").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    # Whoever is left holds the pipes.
    process.communicate(timeout=240)


def test_deterministic_runs_give_the_same_bits_without_a_seed(shapes, tmp_path):
    settings = {**SETTINGS, "SEED": -1, "DETERMINISTIC": True, "SOLVER__MAX_ITER": 4}
    settings |= {"SOLVER__AMP__ENABLED": True, "SOLVER__AMP__PRECISION": "bfloat16"}
    settings |= {"SOLVER__ACCUMULATE": 2, "MODEL__AFF__CHECKPOINT_BLOCKS": True}
    for name in ("one", "two"):
        code, _, err = run(shapes, tmp_path / name, **settings)
        assert code == 0, err
    assert not differences(state_of(tmp_path / "one"), state_of(tmp_path / "two"))
