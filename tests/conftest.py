"""Fixtures shared by the tests."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg

import aff_seg

REPO = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch):
    """Run every test in the root of the repo, with a fixed seed."""
    monkeypatch.chdir(REPO)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def load_config():
    """A function from a path below ``configs`` (and overrides) to a config for the CPU."""

    def load(path: str, *opts) -> CfgNode:
        cfg = get_cfg()
        aff_seg.add_aff_config(cfg)
        cfg.merge_from_file(os.path.join(REPO, "configs", f"{path}.yaml"))
        cfg.merge_from_list(["MODEL.DEVICE", "cpu", *opts])
        return cfg

    return load


@pytest.fixture(scope="session")
def tiny_opts() -> list:
    """Overrides that shrink ``quick/shapes_cityscapes_panoptic`` to what a test needs."""
    return [
        *("MODEL.AFF.EMBED_DIM", [16, 16, 32, 32], "MODEL.AFF.DEPTHS", [1, 1, 1, 1]),
        *("MODEL.AFF.NUM_HEADS", [1, 1, 2, 2], "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32),
        *("MODEL.SEM_SEG_HEAD.MASK_DIM", 32, "MODEL.MASK_FORMER.HIDDEN_DIM", 32),
        *("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1, "MODEL.MASK_FORMER.DEC_LAYERS", 4),
        *("MODEL.MASK_FORMER.DIM_FEEDFORWARD", 64, "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 12),
        *("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 256),
    ]


@pytest.fixture(scope="session")
def emulated():
    """The operators of ``torch.ops`` that run the CUDA kernels on a CPU."""
    path = Path(__file__).parent / "emulation" / "build.py"
    spec = importlib.util.spec_from_file_location("emulation_build", path)
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    if build.compiler() is None:
        pytest.skip("there is no C++ compiler")
    torch.ops.load_library(build.build())
    return torch.ops.aff_seg_emulated
