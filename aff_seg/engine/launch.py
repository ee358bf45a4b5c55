"""Processes of a training: started here as by Detectron2, or by torchrun or srun."""

import gc
import multiprocessing
import os
import re
import signal
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import detectron2.engine
import torch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from aff_seg.errors import UserError
from aff_seg.stopping import SIGNALS, STOPPED_STATUS, Stopped

# SLURM numbers steps that srun has not started, such as the shell of salloc, from here.
FIRST_SPECIAL_STEP = 0xFFFFFFF0


@dataclass(frozen=True)
class Place:
    """A process among those that a launcher has started.

    Attributes:
        launcher: its name.
        rank, size: number of this process; how many there are.
        local_rank, local_size: the same on this machine.
        address, port: where the first process listens.
    """

    launcher: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int


def place_in(environment: Mapping[str, str]) -> Place | None:
    """What torchrun or srun has put into the environment; None where neither started us.

    Raises:
        UserError: machines have different numbers of processes.
    """
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
        size = environment["WORLD_SIZE"]
        return Place(
            launcher="torchrun",
            rank=int(environment["RANK"]),
            size=int(size),
            local_rank=int(environment["LOCAL_RANK"]),
            local_size=int(environment.get("LOCAL_WORLD_SIZE", size)),
            address=environment["MASTER_ADDR"],
            port=int(environment["MASTER_PORT"]),
        )
    # The script of sbatch and the shell of salloc have the other variables, too.
    if {"SLURM_STEP_ID", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"} <= environment.keys():
        if int(environment["SLURM_STEP_ID"]) < FIRST_SPECIAL_STEP:
            return _place_in_step(environment)
    return None


def _place_in_step(environment: Mapping[str, str]) -> Place:
    size = int(environment.get("SLURM_STEP_NUM_TASKS", environment["SLURM_NTASKS"]))
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get(
        "SLURM_TASKS_PER_NODE", str(size)
    )
    # Such as 4(x2),3.
    counts = {int(count) for count in re.findall(r"(\d+)(?:\(x\d+\))?", tasks)}
    if len(counts) > 1:
        raise UserError(
            f"srun started {tasks} tasks per node; ask for equal numbers with --ntasks-per-node."
        )
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "")
    job = int(environment.get("SLURM_JOB_ID", "0"))
    return Place(
        launcher="srun",
        rank=int(environment["SLURM_PROCID"]),
        size=size,
        local_rank=int(environment["SLURM_LOCALID"]),
        local_size=counts.pop(),
        address=environment.get("MASTER_ADDR") or first_node(nodes) or "127.0.0.1",
        # Jobs that share a machine need different ones.
        port=int(environment.get("MASTER_PORT") or 20000 + job % 20000),
    )


def first_node(nodes: str) -> str:
    """The first name of a list in SLURM's short form: ``gpu[03-05,7],cpu1`` begins with gpu03."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def launch(main: Callable[[Any], None], arguments: Any) -> None:
    """Run ``main(arguments)`` in every process of the training.

    Where torchrun or srun started several, this is one of them; else ``--num-gpus`` and the like
    start them, as in Detectron2. Signals that ask to stop are passed on to those, and the program
    ends with the status of the first that ends with another than 0.

    Raises:
        UserError: there are too few GPUs, two ways to start processes are mixed, machines lack
            an address to meet at, or a signal has ended a process.
    """
    place = place_in(os.environ)
    # A task of srun may start the processes of its machine.
    if place is not None and place.launcher == "srun" and arguments.num_machines > 1:
        place = None
    if place is not None and place.size > 1:
        if arguments.num_gpus != 1 or arguments.num_machines != 1:
            raise UserError(
                f"{place.launcher} has started {place.size} processes; leave out --num-gpus and "
                "--num-machines."
            )
        _join(place)
        _run(main, arguments)
        return
    check_devices(arguments.num_gpus, "--num-gpus is")
    if arguments.num_machines > 1 and arguments.dist_url == "auto":
        raise UserError(
            f"--num-machines is {arguments.num_machines}; give all of them one --dist-url, "
            "tcp://<the first machine>:<a free port>."
        )
    starts_others = arguments.num_gpus * arguments.num_machines > 1
    if starts_others:
        for number in SIGNALS:
            signal.signal(number, _pass_on)
    try:
        detectron2.engine.launch(
            _run_child if starts_others else _run,
            arguments.num_gpus,
            num_machines=arguments.num_machines,
            machine_rank=arguments.machine_rank,
            dist_url=arguments.dist_url,
            args=(main, arguments),
        )
    except ProcessExitedException as failed:
        if failed.exit_code >= 0:
            sys.exit(failed.exit_code)
        # Signals to stop end a process that has not yet begun to handle them.
        if -failed.exit_code in SIGNALS:
            sys.exit(STOPPED_STATUS)
        raise UserError(
            f"Process {failed.error_index} was ended by {failed.signal_name}; has the machine "
            "run out of memory?"
        ) from failed


def check_devices(wanted: int, who: str) -> None:
    """Raise a :class:`UserError` where there are fewer GPUs than wanted, but not none."""
    visible = torch.cuda.device_count()
    if 0 < visible < wanted:
        raise UserError(f"{who} {wanted}, but only {visible} are visible.")


def _join(place: Place) -> None:
    """Make the process groups that Detectron2 expects."""
    # srun can show each task a GPU of its own.
    own = place.launcher == "srun" and torch.cuda.device_count() == 1
    if not own:
        check_devices(place.local_size, f"{place.launcher}'s processes on this machine are")
    os.environ.update(
        MASTER_ADDR=place.address,
        MASTER_PORT=str(place.port),
        RANK=str(place.rank),
        WORLD_SIZE=str(place.size),
    )
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(0 if own else place.local_rank)
    torch.distributed.init_process_group(
        "nccl" if on_gpu else "gloo", init_method="env://", timeout=DEFAULT_TIMEOUT
    )
    comm.create_local_process_group(place.local_size)
    comm.synchronize()


def _run_child(main: Callable[[Any], None], arguments: Any) -> None:
    # torch has SIGINT sent to a process whose parent was killed. Where the program was started in
    # the background it would be ignored, and the process would train on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Data workers are forked, as where torchrun has started the processes; else each would import
    # everything anew.
    multiprocessing.set_start_method("fork", force=True)
    _run(main, arguments)


def _run(main: Callable[[Any], None], arguments: Any) -> None:
    """Run ``main`` and leave the process groups."""
    end: UserError | Stopped | None = None
    try:
        main(arguments)
    except (UserError, Stopped) as error:
        # Without the frames of main, which hold the model.
        end = error.with_traceback(None)
    if torch.distributed.is_initialized():
        if not isinstance(end, UserError):
            # The others may still be at work; after an error they may wait for this one.
            comm.synchronize()
        _leave_groups()
    if end is not None:
        raise end


def _leave_groups() -> None:
    """Leave all process groups and end their threads, which abort a program that ends first."""
    torch.distributed.destroy_process_group()
    # The threads run as long as something holds a group: models, and these two of Detectron2.
    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()
    gc.collect()


def _pass_on(number: int, frame: types.FrameType | None) -> None:
    children = multiprocessing.active_children()
    for child in children:
        os.kill(child.pid, number)
    if not children:
        os._exit(STOPPED_STATUS)
