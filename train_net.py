"""Train or evaluate AutoFocusFormer.

    python train_net.py --config-file configs/cityscapes/panoptic/aff_mini.yaml --num-gpus 8
    torchrun --nproc-per-node 8 train_net.py --config-file ...
    srun python train_net.py --config-file ... --resume
    python train_net.py --config-file ... --eval-only MODEL.WEIGHTS model.pth

Any config key can be set at the end: ``SOLVER.IMS_PER_BATCH 8 OUTPUT_DIR output/mini``.

SIGTERM, SIGUSR1 and SIGUSR2 end a training after its step, with a checkpoint and status 75, and
where there is nothing to save at once; --resume goes on as if there had been no break.
"""

import argparse
import contextlib
import logging
import os
import sys

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from aff_seg.cli import plain_errors
from aff_seg.data import check_datasets
from aff_seg.engine.checkpoint import Checkpointer
from aff_seg.engine.checkpoint_file import check_weights_exist
from aff_seg.engine.launch import launch
from aff_seg.engine.trainer import Trainer, add_tasks, by_dataset
from aff_seg.errors import UserError
from aff_seg.evaluation import (
    Results,
    check_best_metric,
    check_evaluators,
    format_table,
    save_results,
)
from aff_seg.randomness import make_deterministic
from aff_seg.setup_cfg import announce_device, find_config, load_cfg
from aff_seg.stopping import ending_at_once

PROGRAM = "train_net.py"
# Of one message of Detectron2's on the terminal.
MOST_LINES = 5
logger = logging.getLogger("aff_seg.train_net")


def setup(args: argparse.Namespace) -> CfgNode:
    """Load the config, start the logs in its ``OUTPUT_DIR``, seed everything."""
    args.config_file = find_config(args.config_file)  # Detectron2 logs it
    cfg = load_cfg(args.config_file, args.opts)
    if cfg.DETERMINISTIC:
        cfg.SEED = max(cfg.SEED, 0)
    cfg.freeze()
    try:
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write to OUTPUT_DIR {cfg.OUTPUT_DIR}: {error.strerror}.") from None
    # Detectron2 logs the environment and whole configs: pages, which belong into log.txt.
    for handler in setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank()).handlers:
        if handler.stream is sys.stdout:
            handler.addFilter(lambda record: record.getMessage().count("\n") < MOST_LINES)
    default_setup(cfg, args)
    if cfg.DETERMINISTIC:
        make_deterministic()
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="aff_seg")
    announce_device(cfg)
    return cfg


def evaluate(cfg: CfgNode, *, resume: bool) -> Results:
    """Score the weights of ``MODEL.WEIGHTS``, or with ``resume`` the last checkpoint."""
    model = Trainer.build_model(cfg)
    checkpointer = Checkpointer(model, cfg.OUTPUT_DIR)
    if not (cfg.MODEL.WEIGHTS or resume and checkpointer.has_checkpoint()):
        logger.warning("No MODEL.WEIGHTS: evaluating a model with random weights.")
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    results = by_dataset(cfg, Trainer.test(cfg, model))
    if cfg.TEST.AUG.ENABLED:
        add_tasks(results, Trainer.test_with_TTA(cfg, model))
    return results


def train(cfg: CfgNode, *, resume: bool) -> Results:
    """Train from ``MODEL.WEIGHTS``, or with ``resume`` from the last checkpoint, and score."""
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer.last_results


def main(args: argparse.Namespace) -> None:
    """What each process does."""
    stops = contextlib.nullcontext() if args.eval_only else ending_at_once()
    with plain_errors(PROGRAM), stops:
        cfg = setup(args)
        if not args.resume and cfg.MODEL.WEIGHTS:
            check_weights_exist(cfg.MODEL.WEIGHTS)
        if comm.get_local_rank() == 0:
            check_datasets(cfg, splits=("TEST",) if args.eval_only else ("TRAIN", "TEST"))
        check_evaluators(cfg)
        if not args.eval_only:
            check_best_metric(cfg)
        comm.synchronize()
        run = evaluate if args.eval_only else train
        results = run(cfg, resume=args.resume)
        if comm.is_main_process():
            path = save_results(results, cfg.OUTPUT_DIR)
            logger.info("Results, also in %s:\n%s", path, format_table(results))
            for result in results.values():
                verify_results(cfg, result)


if __name__ == "__main__":
    parser = default_argument_parser()
    # Detectron2 has one port for all trainings of a user.
    parser.set_defaults(dist_url="auto")
    arguments = parser.parse_args()
    with plain_errors(PROGRAM):
        launch(main, arguments)
