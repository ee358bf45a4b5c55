"""Trains every task of a variant for two iterations, at its full size but on small images.

Run as a script with DETECTRON2_DATASETS set, the name of the variant and a folder for outputs;
prints the scores as JSON.
"""

import json
import sys
from pathlib import Path

from nine_tasks import TASKS

from aff_seg.data import check_datasets
from aff_seg.engine.trainer import Trainer
from aff_seg.evaluation import check_best_metric, check_evaluators, summarize
from aff_seg.setup_cfg import load_cfg

OPTIONS = {
    "MODEL.DEVICE": "cpu",
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 256,
    "INPUT.MIN_SIZE_TRAIN": (96,),
    "INPUT.MIN_SIZE_TEST": 96,
    "INPUT.MAX_SIZE_TEST": 128,
    "INPUT.CROP.SIZE": [64, 96],
    "INPUT.IMAGE_SIZE": 128,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.STEPS": (1,),
    "TEST.EVAL_PERIOD": 0,
    "DATALOADER.NUM_WORKERS": 0,
}


def scores_of(task: str, variant: str, folder: Path) -> dict[str, float]:
    output = folder / task
    output.mkdir(parents=True)
    options = {**OPTIONS, "OUTPUT_DIR": str(output)}
    if task.startswith("ade20k"):
        options["INPUT.SIZE_DIVISIBILITY"] = 128
    pairs = [word for pair in options.items() for word in pair]
    cfg = load_cfg(f"configs/{task}/aff_{variant}.yaml", pairs)
    check_datasets(cfg)
    check_evaluators(cfg)
    check_best_metric(cfg)
    trainer = Trainer(cfg)
    trainer.train()
    assert trainer.iter == cfg.SOLVER.MAX_ITER
    return summarize(trainer.last_results[cfg.DATASETS.TEST[0]])


def main(variant: str, folder: str) -> None:
    scores = {task: scores_of(task, variant, Path(folder)) for task in TASKS}
    print("SCORES " + json.dumps(scores))


if __name__ == "__main__":
    main(*sys.argv[1:])
