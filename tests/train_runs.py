"""Runs of train_net.py with a tiny model on drawn shapes, for tests."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "quick" / "shapes_cityscapes_panoptic.yaml"
TINY = {
    "MODEL.AFF.EMBED_DIM": "(8, 8, 16, 16)",
    "MODEL.AFF.DEPTHS": "(1, 1, 1, 1)",
    "MODEL.AFF.NUM_HEADS": "(1, 1, 2, 2)",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": "16",
    "MODEL.SEM_SEG_HEAD.MASK_DIM": "16",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": "1",
    "MODEL.MASK_FORMER.HIDDEN_DIM": "16",
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": "16",
    "MODEL.MASK_FORMER.DEC_LAYERS": "2",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": "5",
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": "32",
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MAX_SIZE_TRAIN": "128",
    "INPUT.MIN_SIZE_TEST": "64",
    "INPUT.MAX_SIZE_TEST": "128",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.CHECKPOINT_PERIOD": "2",
    "TEST.EVAL_PERIOD": "0",
    "DATALOADER.NUM_WORKERS": "0",
}


def start(
    shapes, output, *arguments, launcher=(str(ROOT / "train_net.py"),), variables=(), **settings
):
    """Start train_net.py with a tiny model; ``settings`` have __ for the dots of a key.

    ``launcher`` are the arguments to Python before those of train_net.py; ``variables`` of the
    environment are added.
    """
    settings = {key.replace("__", "."): str(value) for key, value in settings.items()}
    options = {**TINY, "OUTPUT_DIR": str(output), **settings}
    command = [sys.executable, *launcher, "--config-file", str(CONFIG)]
    command += [*arguments, *(word for option in options.items() for word in option)]
    environment = {
        **os.environ,
        "DETECTRON2_DATASETS": str(shapes),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **dict(variables),
    }
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, env=environment, cwd=output.parent, stdout=pipe, stderr=pipe, text=True
    )


def run(*arguments, timeout=240, **settings):
    """Run train_net.py to its end, within ``timeout`` seconds: exit status, stdout, stderr."""
    process = start(*arguments, **settings)
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err
