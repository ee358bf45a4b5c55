"""Submitting a training, without a cluster."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from train_runs import ROOT, run, start

from aff_seg.data.shapes import write_dataset

PROGRAM = str(ROOT / "tools" / "slurm.py")
SETTINGS = {"SEED": 2, "SOLVER__MAX_ITER": 25, "SOLVER__CHECKPOINT_PERIOD": 5}


def error_of(*arguments, **environment):
    command = [sys.executable, PROGRAM, *arguments]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    return done.stderr.splitlines()[-1]


def test_missing_submitit_is_one_sentence(tmp_path):
    (tmp_path / "submitit.py").write_text("raise ModuleNotFoundError")
    line = error_of("--", "--config-file", "a.yaml", PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert line.startswith("slurm.py: error: submitit is missing; install it: ")


def test_missing_slurm_is_one_sentence(tmp_path):
    line = error_of("--", PATH=str(tmp_path))
    assert line.startswith("slurm.py: error: There is no SLURM here (no command sbatch); ")


def test_options_reach_sbatch(tmp_path):
    """A command sbatch of our own stands in for a cluster."""
    for name in ("sbatch", "srun"):
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text('#!/bin/sh\ncp "$1" "$(dirname "$0")/script"\necho job 7\n')
        script.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    options = ["--nodes", "2", "--gpus", "4", "--hours", "3", "--partition", "big"]
    options += ["--sbatch", "account=vision", "--logs", str(tmp_path / "logs")]
    done = subprocess.run(
        [sys.executable, PROGRAM, *options, "--", "--config-file", "a.yaml"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Job 7; its log will be ")
    script = (tmp_path / "bin" / "script").read_text()
    for line in (
        "account=vision",
        "gpus-per-node=4",
        "nodes=2",
        "ntasks-per-node=4",
        "partition=big",
        "requeue",
        "signal=USR2@120",
        "time=180",
    ):
        assert f"#SBATCH --{line}\n" in script, script


def task_of(logs):
    """The process that does the job."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_text()
        except OSError:
            continue
        if "submitit.core._submit" in command and str(logs) in command:
            return int(folder.name)
    raise AssertionError("no task of submitit's")


def test_a_preempted_job_is_queued_again_and_resumes(tmp_path):
    shapes = tmp_path / "shapes"
    write_dataset(layout="cityscapes", root=shapes, train=5, val=1, size=(64, 128), progress=False)
    code, _, err = run(shapes, tmp_path / "whole", **SETTINGS)
    assert code == 0, err
    logs, output = tmp_path / "logs", tmp_path / "out"
    launcher = (PROGRAM, "--cluster", "local", "--gpus", "0", "--logs", str(logs), "--")
    job = start(shapes, output, launcher=launcher, **SETTINGS)
    while not (output / "last_checkpoint").exists():
        assert job.poll() is None, job.communicate()
        time.sleep(0.02)
    os.kill(task_of(logs), signal.SIGUSR2)
    out, err = job.communicate(timeout=120)
    assert job.returncode == 0, err
    (log,) = logs.glob("*_0_log.out")
    log = log.read_text()
    assert "with status 75; --resume goes on." in log and "Resuming from " in log, log
    whole, resumed = (
        torch.load(folder / "model_final.pth", weights_only=True)["model"]
        for folder in (tmp_path / "whole", output)
    )
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
