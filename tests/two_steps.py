"""Trains a config for two iterations and evaluates it, on small images.

Run as a script with DETECTRON2_DATASETS set, a task such as ``coco/panoptic``, a variant such as
``mini`` and a folder for the output; prints what came of it as a line of JSON.
"""

import json
import sys
import time
from pathlib import Path

from test_configs import expected, lookup

from aff_seg.data import check_datasets
from aff_seg.engine.trainer import Trainer
from aff_seg.evaluation import check_best_metric, check_evaluators, summarize
from aff_seg.setup_cfg import load_cfg

SHORT = {
    "MODEL.DEVICE": "cpu",
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 2,
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.IMAGE_SIZE": 96,
    "INPUT.CROP.SIZE": [64, 64],
}


def train(task: str, variant: str, output: str) -> dict:
    options = {**SHORT, "OUTPUT_DIR": output}
    if task.startswith("ade20k"):
        options["INPUT.SIZE_DIVISIBILITY"] = 64
    pairs = [word for pair in options.items() for word in pair]
    cfg = load_cfg(f"configs/{task}/aff_{variant}.yaml", pairs)
    check_datasets(cfg)
    check_evaluators(cfg)
    check_best_metric(cfg)
    recipe = expected(task, variant)
    start = time.perf_counter()
    trainer = Trainer(cfg)
    trainer.train()
    rows = [json.loads(row) for row in Path(output, "metrics.json").read_text().splitlines()]
    (results,) = trainer.last_results.values()
    return {
        "changed": sorted(key for key in recipe if lookup(cfg, key) != recipe[key]),
        "shapes": {n: list(p.shape) for n, p in trainer.model.named_parameters()},
        "losses": [row["total_loss"] for row in rows if "total_loss" in row],
        "metrics": summarize(results),
        "seconds": time.perf_counter() - start,
    }


if __name__ == "__main__":
    print("RESULT " + json.dumps(train(*sys.argv[1:])))
