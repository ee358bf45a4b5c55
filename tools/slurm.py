"""Submit a training to SLURM, which goes on after preemptions and time limits by itself.

    python tools/slurm.py --nodes 2 --gpus 8 --hours 48 --partition gpu -- \\
        --config-file configs/coco/panoptic/aff_base.yaml OUTPUT_DIR output/base

What follows ``--`` goes to train_net.py, with ``--resume``. Before a preemption or the end of its
time the job writes a checkpoint and is queued again. Logs lie in ``--logs``.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from aff_seg.cli import plain_errors
from aff_seg.errors import UserError
from aff_seg.stopping import SIGNALS, STOPPED_STATUS

try:
    import submitit
except ModuleNotFoundError:
    submitit = None

PROGRAM = "slurm.py"
TRAIN_NET = Path(__file__).resolve().parents[1] / "train_net.py"
# Seconds from the warning to the end of a job: for the step and the checkpoint.
NOTICE = 120
# A stopped task waits for SLURM to end or requeue the job, but no longer than this (seconds).
PATIENCE = 600


class Training:
    """One task of a job: train_net.py in a process of its own, which finds its rank itself.

    Args:
        arguments: of train_net.py.
    """

    def __init__(self, arguments: list[str]) -> None:
        self._arguments = arguments
        self._process = None

    def __call__(self) -> None:
        command = [sys.executable, str(TRAIN_NET), "--resume", *self._arguments]
        self._process = subprocess.Popen(command)
        while (status := self._process.poll()) is None:
            time.sleep(0.2)
        # While it is still starting, signals end it by themselves.
        if status == STOPPED_STATUS or -status in SIGNALS:
            time.sleep(PATIENCE)
        if status:
            raise RuntimeError(f"train_net.py ended with status {status}; its log says why.")

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """Called by submitit on its signal: stop the training, to be queued again."""
        if self._process is not None:
            self._process.terminate()
            # Popen.wait would wait for the poll that the signal may have interrupted.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return submitit.helpers.DelayedSubmission(Training(self._arguments))


def submit(args: argparse.Namespace) -> "submitit.Job":
    """Hand the training to the batch system.

    Raises:
        UserError: submitit or SLURM is missing, or an option is wrong.
    """
    if submitit is None:
        raise UserError("submitit is missing; install it: .venv/bin/python -m pip install submitit")
    if args.cluster == "slurm" and shutil.which("sbatch") is None:
        raise UserError(
            "There is no SLURM here (no command sbatch); log in to the cluster, or try the job "
            "on this machine with --cluster local."
        )
    executor = submitit.AutoExecutor(
        folder=args.logs, cluster=args.cluster, slurm_max_num_timeout=args.requeues
    )
    executor.update_parameters(
        name=args.name,
        nodes=args.nodes,
        gpus_per_node=args.gpus,
        tasks_per_node=max(args.gpus, 1) if args.cluster == "slurm" else 1,
        cpus_per_task=args.cpus,
        timeout_min=max(1, round(60 * args.hours)),
        slurm_signal_delay_s=NOTICE,
        slurm_additional_parameters={"requeue": True, **_pairs(args)},
    )
    arguments = args.arguments[1:] if args.arguments[:1] == ["--"] else args.arguments
    if args.cluster == "local" and args.gpus > 1:
        arguments = ["--num-gpus", str(args.gpus), *arguments]
    return executor.submit(Training(arguments))


def _pairs(args: argparse.Namespace) -> dict[str, str]:
    """Options of sbatch."""
    pairs = {}
    for option in args.sbatch:
        key, separator, value = option.partition("=")
        if not separator:
            raise UserError(f"--sbatch {option} is no OPTION=VALUE, such as account=vision.")
        pairs[key.lstrip("-").replace("-", "_")] = value
    return {**pairs, "partition": args.partition} if args.partition else pairs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=1, help="machines")
    parser.add_argument("--gpus", type=int, default=8, help="GPUs, and tasks, of each machine")
    parser.add_argument("--cpus", type=int, default=8, help="cores for each task")
    parser.add_argument("--hours", type=float, default=24.0, help="time limit")
    parser.add_argument("--requeues", type=int, default=20, help="most time limits to outlast")
    parser.add_argument("--partition", default="", help="partition of SLURM")
    parser.add_argument("--name", default="aff_seg", help="name of the job")
    parser.add_argument("--logs", default="output/slurm", help="folder of the job's logs")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION=VALUE", help="more for sbatch"
    )
    parser.add_argument(
        "--cluster", choices=("slurm", "local"), default="slurm", help="local: this machine"
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="-- and those of train_net.py")
    args = parser.parse_args()
    with plain_errors(PROGRAM):
        job = submit(args)
        print(f"Job {job.job_id}; its log will be {job.paths.stdout}")
        if args.cluster == "local":
            job.wait()


if __name__ == "__main__":
    main()
