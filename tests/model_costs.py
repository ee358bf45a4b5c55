"""What the models of configs cost, each found once in a run of the tests."""

from functools import cache
from pathlib import Path

from aff_seg.analysis import Analysis, analyze_config
from aff_seg.setup_cfg import load_cfg

REPO = Path(__file__).parents[1]


@cache
def cost(config: str, height: int, width: int) -> Analysis:
    """Cost of the model of a config, by its path below the repo, for an image of a size."""
    cfg = load_cfg(str(REPO / config), ["MODEL.DEVICE", "cpu"])
    return analyze_config(cfg, (height, width))
