"""Processes that torchrun and srun start."""

import os
import signal
import types

import pytest
import torch
from torch.multiprocessing import ProcessExitedException
from train_runs import ROOT, run, start

from aff_seg.data.shapes import write_dataset
from aff_seg.engine import launch as launching
from aff_seg.engine.curves import read_metrics
from aff_seg.engine.launch import Place, first_node, launch, place_in
from aff_seg.errors import UserError

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "somewhere",
    "MASTER_PORT": "1234",
}
SRUN = {
    "SLURM_JOB_ID": "30007",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NODELIST": "gpu[03-04],cpu1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}


def test_torchrun_is_recognised():
    want = Place("torchrun", 5, 8, 1, 4, "somewhere", 1234)
    assert place_in(TORCHRUN) == place_in({**SRUN, **TORCHRUN}) == want


def test_srun_is_recognised():
    assert place_in(SRUN) == Place("srun", 3, 4, 1, 2, "gpu03", 30007)
    other = place_in({**SRUN, "MASTER_ADDR": "head", "MASTER_PORT": "99"})
    assert (other.address, other.port) == ("head", 99)
    # Two steps of a job may differ from it.
    step = place_in({**SRUN, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "gpu04"})
    assert (step.size, step.address) == (2, "gpu04")


def test_neither_is_recognised_in_a_plain_shell_or_in_the_script_of_a_job():
    assert place_in({"PATH": "/bin", "MASTER_ADDR": "somewhere"}) is None
    assert place_in({k: v for k, v in SRUN.items() if k != "SLURM_STEP_ID"}) is None


def test_the_shell_of_salloc_waits_for_no_others():
    """It is a step, of one task, with the variables of the whole job."""
    assert place_in({**SRUN, "SLURM_STEP_ID": "4294967290", "SLURM_PROCID": "0"}) is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu7", "gpu7"),
        ("a-1,b-2", "a-1"),
        ("gpu[003-010,12]", "gpu003"),
        ("gpu[3,5]-ib,cpu1", "gpu3-ib"),
        ("rack[0-1]n[07-09],x", "rack0n07"),
        ("", ""),
    ],
)
def test_first_node_of_a_list(nodes, first):
    assert first_node(nodes) == first


def test_nodes_with_different_numbers_of_tasks_are_refused():
    with pytest.raises(UserError, match=r"srun started 2\(x2\),1 tasks per node"):
        place_in({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2(x2),1"})


def arguments(**changes):
    default = {"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"}
    return types.SimpleNamespace(**{**default, **changes})


def test_two_ways_to_start_processes_are_not_mixed(monkeypatch):
    monkeypatch.setattr(os, "environ", {**os.environ, **TORCHRUN})
    with pytest.raises(UserError, match="torchrun has started 8 processes; leave out --num-gpus"):
        launch(print, arguments(num_gpus=2))


def test_a_task_of_srun_may_start_the_processes_of_its_machine(monkeypatch):
    monkeypatch.setattr(os, "environ", {**os.environ, **SRUN})
    seen = {}
    monkeypatch.setattr(launching.detectron2.engine, "launch", lambda *_, **how: seen.update(how))
    launch(print, arguments(num_machines=4, machine_rank=3, dist_url="tcp://gpu03:99"))
    assert (seen["num_machines"], seen["machine_rank"]) == (4, 3)


def test_machines_need_an_address_to_meet_at():
    with pytest.raises(UserError, match="--num-machines is 2; give all of them one --dist-url"):
        launch(print, arguments(num_machines=2))


@pytest.mark.parametrize(("code", "status"), [(3, 3), (75, 75), (-15, 75), (-12, 75)])
def test_the_status_of_a_process_is_that_of_the_program(monkeypatch, code, status):
    fails_with(monkeypatch, code)
    with pytest.raises(SystemExit) as end:
        launch(print, arguments(num_gpus=2))
    assert end.value.code == status


def test_a_killed_process_is_told(monkeypatch):
    fails_with(monkeypatch, -9)
    with pytest.raises(UserError, match="Process 1 was ended by SIGKILL; has the machine run out"):
        launch(print, arguments(num_gpus=2))


def fails_with(monkeypatch, code):
    """Have a process that ``launch`` starts end so."""

    def fail(*_, **__):
        name = signal.Signals(-code).name if code < 0 else None
        raise ProcessExitedException(
            "", error_index=1, error_pid=7, exit_code=code, signal_name=name
        )

    monkeypatch.setattr(launching.detectron2.engine, "launch", fail)
    monkeypatch.setattr(launching.signal, "signal", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def test_a_single_task_runs_as_it_is(monkeypatch):
    alone = {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    monkeypatch.setattr(os, "environ", {**os.environ, **alone})
    seen = []
    launch(seen.append, arguments())
    assert len(seen) == 1 and not torch.distributed.is_initialized()


def test_too_few_gpus_are_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="--num-gpus is 4, but only 2 are visible."):
        launch(print, arguments(num_gpus=4))
    sentence = "srun's processes on this machine are 4, but only 2 are visible."
    with pytest.raises(UserError, match=sentence):
        launching._join(Place("srun", 0, 8, 0, 4, "here", 1))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of the same training in one process and in two of torchrun's; and the shapes."""
    shapes = tmp_path_factory.mktemp("shapes")
    write_dataset(layout="cityscapes", root=shapes, train=5, val=2, size=(64, 128), progress=False)
    folders = {}
    program = str(ROOT / "tests" / "even_points.py")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", program)
    for name, launcher in (("alone", (program,)), ("torchrun", torchrun)):
        folders[name] = tmp_path_factory.mktemp(name) / "out"
        settings = {"SEED": 1, "SOLVER__MAX_ITER": 6, "SOLVER__IMS_PER_BATCH": 4}
        settings |= {"SOLVER__WARMUP_ITERS": 0, "SOLVER__OPTIMIZER": "SGD", "SOLVER__BASE_LR": 0.01}
        code, out, err = run(shapes, folders[name], launcher=launcher, **settings)
        assert code == 0, err
        assert f"World size: {2 if name == 'torchrun' else 1}" in out
    return {**folders, "shapes": shapes}


def losses_of(folder):
    series = read_metrics(str(folder / "metrics.json"))
    return [value for _, value in series["total_loss"]]


def test_two_processes_compute_what_one_does_with_the_same_batch(runs):
    states = {
        name: torch.load(folder / "model_final.pth", weights_only=True)
        for name, folder in runs.items()
        if name != "shapes"
    }
    alone, together = states["alone"]["model"], states["torchrun"]["model"]
    for name, value in alone.items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(together[name], value, rtol=1e-3, atol=2e-5, msg=name)
    assert len(states["torchrun"]["random"]) == 2
    losses = {name: losses_of(runs[name]) for name in states}
    assert len(losses["alone"]) == 6
    assert losses["torchrun"] == pytest.approx(losses["alone"], rel=1e-4)


@pytest.mark.slow
def test_tasks_of_srun_train_together(runs, tmp_path):
    shapes = runs["shapes"]
    tasks = []
    for rank in ("0", "1"):
        variables = {**SRUN, "SLURM_NTASKS": "2", "SLURM_PROCID": rank, "SLURM_LOCALID": rank}
        variables |= {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODELIST": "localhost"}
        tasks.append(start(shapes, tmp_path / "out", variables=variables, SOLVER__MAX_ITER=2))
    for task in tasks:
        out, err = task.communicate(timeout=120)
        assert task.returncode == 0, err
        assert "iter 2/2" in out or task is tasks[1]
