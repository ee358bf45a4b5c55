"""What the models of configs cost, each found once in a run of the tests."""

import importlib.util
from functools import cache
from pathlib import Path

from aff_seg.analysis import Analysis
from aff_seg.setup_cfg import load_cfg

REPO = Path(__file__).parents[1]


@cache
def cost(config: str, height: int, width: int) -> Analysis:
    """Cost of the model of a config, by its path below the repo, for an image of a size."""
    spec = importlib.util.spec_from_file_location("analyze_model", REPO / "tools/analyze_model.py")
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    cfg = load_cfg(str(REPO / config), ["MODEL.DEVICE", "cpu"])
    return program.analyze_config(cfg, (height, width))
