"""Fixtures shared by the tests."""

import os
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from elsewhere import redirect
from emulation.build import build, compiler

import aff_seg

_REDIRECTED = pytest.StashKey[torch.library.Library]()

REPO = Path(__file__).parents[1]


def pytest_addoption(parser):
    parser.addoption(
        "--device",
        choices=["cpu", "cuda", "emulated"],
        default="cpu",
        help="where operators and golden cases run; emulated: CUDA kernels compiled for a CPU",
    )


def pytest_configure(config):
    device = config.getoption("--device")
    if device != "cpu":
        config.stash[_REDIRECTED] = redirect(device)
    # Convolutions, too, in the float32 that their name says.
    torch.backends.cudnn.allow_tf32 = False


def pytest_collection_modifyitems(config, items):
    if config.getoption("--device") != "cpu":
        here = [item for item in items if item.get_closest_marker("cpu_kernels")]
        config.hook.pytest_deselected(items=here)
        items[:] = [item for item in items if item not in here]


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    """Where models of golden cases run."""
    return torch.device("cuda" if request.config.getoption("--device") == "cuda" else "cpu")


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
    if compiler() is None:
        pytest.skip("there is no C++ compiler")
    torch.ops.load_library(build())
    return torch.ops.aff_seg_emulated
