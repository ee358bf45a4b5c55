"""Memory of inference, measured in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from aff_seg import ops

# Stated in docs/results.md: peak memory of panoptic inference at 1024x2048 beyond that of the
# process with the loaded model.
STATED_MIB = 700
# Stated in docs/python.md: of a process in which AFF-Mini segments 5000x4000 pixels by tiles.
STATED_TILED_MIB = 3 * 1024
HIGH_WATER = """
def high_water():
    with open("/proc/self/status") as stream:
        (line,) = (line for line in stream if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024

"""
SCRIPT = """
import torch
from detectron2.modeling import build_model
from aff_seg.setup_cfg import load_cfg

opts = ["MODEL.DEVICE", "cpu", "MODEL.MASK_FORMER.TEST.SEMANTIC_ON", False]
opts += ["MODEL.MASK_FORMER.TEST.INSTANCE_ON", False]
opts += ["MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", 0.0]  # no query is dropped
model = build_model(load_cfg("configs/cityscapes/panoptic/aff_tiny.yaml", opts)).eval()
image = torch.randint(0, 256, (3, 1024, 2048), dtype=torch.uint8)
before = high_water()
(result,) = model([{"image": image}])
assert result["panoptic_seg"][0].shape == (1024, 2048)
print(high_water() - before)
"""


@pytest.mark.skipif(not ops.NATIVE, reason="stated for the native operators")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_peak_memory_of_panoptic_inference():
    assert 100 < peak_of(SCRIPT) < STATED_MIB


def test_the_pages_state_these_limits():
    for page, limit in (
        ("results", f"{STATED_MIB} MiB"),
        ("python", f"below {STATED_TILED_MIB // 1024} GiB"),
    ):
        assert limit in " ".join(Path("docs", f"{page}.md").read_text().split())


def peak_of(script):
    """What it prints last, MiB."""
    done = subprocess.run(
        [sys.executable, "-c", HIGH_WATER + script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


# Large random weights make the model sure of everything and all masks noise over the whole tile:
# each tile finds 100 instances, the most there can be, and they are one with those of its
# neighbours, so that in the end each is as large as the image. Few of the panoptic segments are.
TILED = """
import numpy as np, torch
from aff_seg.prediction.segmenter import Segmenter
from aff_seg.setup_cfg import load_cfg

opts = ["MODEL.DEVICE", "cpu", "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", 0.0]
opts += ["MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", 0.0]
torch.manual_seed(0)
segmenter = Segmenter(load_cfg("configs/cityscapes/panoptic/aff_mini.yaml", opts))
predictor = segmenter.model.sem_seg_head.predictor
with torch.no_grad():
    for layer in (predictor.class_embed, predictor.mask_embed.layers[-1]):
        layer.weight.normal_()
picture = np.random.default_rng(0).integers(0, 256, (100, 80, 3), dtype=np.uint8)
picture = picture.repeat(50, 0).repeat(50, 1)
result = segmenter(picture, tile=1024)
assert result.panoptic.shape == result.semantic.shape == (5000, 4000)
assert len(result.found) > 20 and len(result.segments) > 1000
assert min(len(one.mask.bits) for one in result.found) == 5000 * 4000 / 8
print(len(result.found), len(result.segments), high_water())
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not ops.NATIVE, reason="stated for the native operators")
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_peak_memory_of_a_large_image_in_tiles():
    assert peak_of(TILED) < STATED_TILED_MIB
