"""`make gpu-check` where there is no GPU, and how it runs its checks."""

import importlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from elsewhere import copied

REPO = Path(__file__).parents[1]


@pytest.fixture
def gate(monkeypatch, tmp_path):
    """The module, writing its logs to a folder of the test."""
    monkeypatch.syspath_prepend(REPO / "tools")
    module = importlib.import_module("gpu_check")
    monkeypatch.setattr(module, "LOGS", tmp_path)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_says_that_there_is_no_gpu():
    command = [sys.executable, "tools/gpu_check.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert re.fullmatch("No GPU is visible to PyTorch .*: nothing was checked.\n", done.stdout)


def test_every_command_is_there(gate):
    for check in gate.checks():
        files = [x for x in check.command if x.startswith(("tests/", "tools/"))]
        assert files and all((REPO / file).exists() for file in files), check


@pytest.mark.parametrize(
    ("code", "limit", "fault", "note"),
    [
        ("print('first'); print('3 passed')", 60, None, "3 passed"),
        ("print('lost'); raise SystemExit(3)", 60, "ended with status 3", "lost"),
        ("import time; time.sleep(60)", 0.5, "cut off after 0 s", ""),
        ("print(1)", -1, "no time was left for it", ""),
    ],
)
def test_a_check_passes_or_tells_why_not(gate, tmp_path, code, limit, fault, note):
    outcome = gate.run(gate.Check("one check", ("-c", code), 60), limit)
    assert (outcome.fault, outcome.note) == (fault, note)
    assert ("FAILED" in gate.line(outcome)) == (fault is not None)
    assert (tmp_path / "one_check.log").exists() == (limit > 0)


def test_nothing_is_left_running(gate, tmp_path):
    """What a check has started ends with it."""
    code = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True)"
    for end in ("", "; time.sleep(60)"):
        note = gate.run(gate.Check("parent", ("-c", code + end), 60), 3).note
        time.sleep(0.5)
        state = Path(f"/proc/{note}/stat")
        assert not state.exists() or state.read_text().split()[2] == "Z"


def test_the_sanitizer_runs_the_same_python(gate, monkeypatch):
    monkeypatch.setattr(gate, "find_sanitizer", lambda: "/somewhere/compute-sanitizer")
    found = {check.name: check for check in gate.checks() if check.program}
    assert set(found) == {"memcheck", "racecheck"}
    for check in found.values():
        assert sys.executable in check.command
        # It finds what the tests share, and then that there is no GPU, or that all is well.
        code = "import runpy; runpy.run_path('tests/gpu/small_run.py')"
        environment = {**os.environ, **check.environment}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_copies_keep_their_strides():
    """What `pytest --device cuda` hands to the GPU."""
    whole = torch.arange(24.0).view(2, 3, 4)
    for x in (whole, whole[:, 1:, ::2], whole[:1].expand(5, -1, -1), whole.mT, whole[:0]):
        copy = copied(x, "cpu")
        assert torch.equal(copy, x) and copy.stride() == x.stride()
