"""A model small enough for tests, which with random weights still finds some segments."""

import torch
from detectron2.modeling import build_model

from aff_seg.setup_cfg import load_cfg

CONFIG = "quick/shapes_cityscapes_panoptic"
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.AFF.EMBED_DIM": "[8, 16, 24, 32]",
    "MODEL.AFF.DEPTHS": "[1, 1, 1, 1]",
    "MODEL.AFF.NUM_HEADS": "[1, 2, 2, 2]",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": "32",
    "MODEL.SEM_SEG_HEAD.MASK_DIM": "32",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": "1",
    "MODEL.MASK_FORMER.HIDDEN_DIM": "32",
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": "32",
    "MODEL.MASK_FORMER.DEC_LAYERS": "2",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": "10",
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": "0.0",
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": "0.0",
    "INPUT.MIN_SIZE_TEST": "64",
    "INPUT.MAX_SIZE_TEST": "128",
}
OPTS = [word for pair in TINY.items() for word in pair]


def save_weights(folder, config=CONFIG, opts=()):
    """Write random weights for a config with ``OPTS`` and ``opts``; returns the path."""
    torch.manual_seed(0)
    model = build_model(load_cfg(config, [*OPTS, *opts]))
    path = folder / "tiny.pth"
    torch.save({"model": model.state_dict()}, path)
    return str(path)
