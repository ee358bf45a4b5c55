"""Memory of inference, measured in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from aff_seg import ops

# Stated in docs/results.md: peak memory of panoptic inference at 1024x2048 beyond that of the
# process with the loaded model.
STATED_MIB = 700
SCRIPT = """
import torch
from detectron2.modeling import build_model
from aff_seg.setup_cfg import load_cfg

def high_water():
    with open("/proc/self/status") as stream:
        (line,) = (line for line in stream if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024

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
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 100 < float(done.stdout.split()[-1]) < STATED_MIB
