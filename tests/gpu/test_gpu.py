"""What only a GPU can show: `make gpu-check` runs these tests; without one they are skipped."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances
from native_op import requiring_grad
from op_inputs import INPUTS

from aff_seg import ops
from aff_seg.cuda_graph import captured
from aff_seg.data.shapes.scene import draw_scene
from aff_seg.engine.checkpoint import Checkpointer

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.timeout(240),
]
GPU = torch.device("cuda")
SIZE = (128, 256)


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(0)
    return [draw_scene(rng, SIZE) for _ in range(2)]


@pytest.fixture
def batch(scenes):
    images = [torch.from_numpy(scene.image.copy()).permute(2, 0, 1) for scene in scenes]
    return [{"image": image.to(GPU)} for image in images]


@pytest.fixture
def model(load_config):
    """The trained model of the demo."""
    model = build_model(load_config("quick/shapes_demo", "MODEL.DEVICE", "cuda")).eval()
    Checkpointer(model).load("demo/aff_shapes.safetensors")
    return model


def _difference(got: torch.Tensor, want: torch.Tensor) -> float:
    """Norm of the difference over the norm."""
    got, want = got.double(), want.double()
    return ((got - want).norm() / want.norm()).item()


def _predict(model, images):
    outputs = model.sem_seg_head(model.backbone(images))
    return outputs["pred_logits"], outputs["pred_masks"]


def test_the_operators_are_there():
    assert "cuda" in ops.NATIVE_DEVICES, "aff_seg._C was built without CUDA"


@torch.no_grad()
def test_predicts_what_the_cpu_does(model, batch):
    images = model.preprocess(batch).tensor
    here = copy.deepcopy(model).cpu()
    for got, want in zip(_predict(model, images), _predict(here, images.cpu()), strict=True):
        assert _difference(got.cpu(), want) < 1e-3


@torch.no_grad()
def test_nothing_waits_for_the_device(model, batch):
    images = model.preprocess(batch).tensor
    _predict(model, images)  # remembers the clusters of the canvas
    torch.cuda.set_sync_debug_mode("error")
    try:
        _predict(model, images)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@torch.no_grad()
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_inference_as_a_graph(model, batch, precision):
    images = model.preprocess(batch).tensor

    def run(images):
        with torch.autocast("cuda", precision, enabled=precision != torch.float32):
            return _predict(model, images)

    replay = captured(run, images)
    for other in (images, images.flip(-1)):
        got = [x.clone() for x in replay(other)]
        for a, b in zip(got, run(other), strict=True):
            assert _difference(a, b) < 1e-5


@torch.no_grad()
def test_bfloat16_changes_little(model, batch):
    """Bounds that docs/gpu.md states; where it rounds, some tokens survive that did not."""
    images = model.preprocess(batch).tensor
    want, segmented = _predict(model, images), model(batch)
    with torch.autocast("cuda", torch.bfloat16):
        got, rounded = _predict(model, images), model(batch)
    assert max(map(_difference, got, want)) < 0.06
    for a, b in zip(rounded, segmented, strict=True):
        same = a["sem_seg"].argmax(0) == b["sem_seg"].argmax(0)
        assert same.float().mean().item() > 0.995


@pytest.fixture
def deterministic():
    """Needs CUBLAS_WORKSPACE_CONFIG=:4096:8 from the start, with some versions of torch."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def _targets(scenes) -> list[Instances]:
    result = []
    for scene in scenes:
        segments = scene.segments()[:6]
        instances = Instances(SIZE)
        instances.gt_classes = torch.arange(len(segments))
        instances.gt_masks = torch.stack([torch.from_numpy(s.mask.copy()) for s in segments])
        result.append(instances)
    return result


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_a_training_step_repeats_bit_for_bit(model, batch, scenes, deterministic, precision):
    batch = [x | {"instances": y} for x, y in zip(batch, _targets(scenes), strict=True)]
    steps = []
    for _ in range(3):
        torch.manual_seed(1)
        trained = copy.deepcopy(model).train()
        optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3)
        with torch.autocast("cuda", precision, enabled=precision != torch.float32):
            loss = sum(trained(batch).values())
        loss.backward()
        optimizer.step()
        grads = [parameter.grad for parameter in trained.parameters()]
        steps.append([loss.detach(), *grads, *trained.state_dict().values()])
    for other in steps[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, steps[0], strict=True))


@pytest.mark.parametrize("name", INPUTS)
def test_gradients_repeat_bit_for_bit(name):
    """Without PyTorch's deterministic mode."""
    leaves, given = INPUTS[name](torch.float32)
    leaves = {key: x.to(GPU) for key, x in leaves.items()}
    given = {key: x.to(GPU) if torch.is_tensor(x) else x for key, x in given.items()}
    runs = []
    for _ in range(5):
        own = requiring_grad(leaves)
        out = getattr(ops, name)(**own, **given)
        torch.manual_seed(0)
        runs.append(torch.autograd.grad(out, list(own.values()), torch.randn_like(out)))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, runs[0], strict=True))


def test_operators_run_on_the_current_stream():
    """On a stream that waits, what an operator reads is not there yet."""
    query, database = torch.rand(1, 50_000, 2), torch.rand(1, 20_000, 2)
    want = ops.knn(query, database, 4)[0]
    query, database = query.to(GPU), database.to(GPU)
    late = torch.zeros_like(query)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        late.copy_(query)
        got = ops.knn(late, database, 4)[0]
    stream.synchronize()
    assert torch.equal(got.cpu(), want)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_operators_run_on_the_device_of_their_tensors():
    points = torch.rand(1, 1000, 2)
    there = points.to("cuda:1")
    got = ops.knn(there, there, 4)[0]
    assert got.device == there.device
    assert torch.equal(got.cpu(), ops.knn(points, points, 4)[0])


OUT_OF_RANGE = """
import torch
from aff_seg import ops
index = torch.full((1, 8, 4), 7, dtype=torch.int32, device="cuda")
index[0, 5, 2] = {value}
pos = torch.zeros(1, 8, 2, device="cuda")
ops.shepard_interpolate(torch.ones(1, 8, 16, device="cuda"), pos, pos, index, 3.0)
torch.cuda.synchronize()
"""


@pytest.mark.parametrize(("value", "fails"), [(7, False), (8, True), (-1, True)])
def test_an_index_out_of_range_is_an_error(value, fails):
    code = OUT_OF_RANGE.format(value=value)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode != 0) == fails, done.stderr
    assert ("assert" in done.stderr) == fails
