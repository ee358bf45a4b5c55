"""Trains two steps of Detectron2's models with AFF and of ours with other backbones; scores them.

Run as a script with DETECTRON2_DATASETS set: output folder, then configs below ``configs`` without
".yaml". Prints the scores of each as JSON.
"""

import json
import sys
from pathlib import Path

from aff_seg.data import check_datasets
from aff_seg.engine.trainer import Trainer
from aff_seg.evaluation import check_best_metric, check_evaluators
from aff_seg.setup_cfg import load_cfg

TINY = {
    "MODEL.AFF.EMBED_DIM": [8, 8, 16, 16],
    "MODEL.AFF.DEPTHS": [1, 1, 1, 1],
    "MODEL.AFF.NUM_HEADS": [1, 1, 2, 2],
    "MODEL.SWIN.EMBED_DIM": 12,
    "MODEL.SWIN.DEPTHS": [1, 1, 1, 1],
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.RPN.CONV_DIMS": [16],
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    # Something is found, whatever it is worth.
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 16,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 16,
    "MODEL.MASK_FORMER.DEC_LAYERS": 2,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 5,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 32,
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MAX_SIZE_TRAIN": 128,
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 128,
    "INPUT.IMAGE_SIZE": 64,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.ACCUMULATE": 2,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.STEPS": (),
    "DATALOADER.NUM_WORKERS": 0,
    "MODEL.DEVICE": "cpu",
    "SEED": 0,
}


def train(config: str, folder: Path) -> dict:
    """Results of two steps with the config, by dataset."""
    options = {**TINY, "OUTPUT_DIR": str(folder)}
    cfg = load_cfg(f"configs/{config}.yaml", [x for pair in options.items() for x in pair])
    check_datasets(cfg)
    check_evaluators(cfg)
    check_best_metric(cfg)
    folder.mkdir(parents=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer.last_results


if __name__ == "__main__":
    for name in sys.argv[2:]:
        scores = train(name, Path(sys.argv[1]) / name)
        print("SCORES", json.dumps([name, scores]))
