"""The whole model as one graph."""

import pytest
import torch
from detectron2.modeling import build_model

from aff_seg import ops
from aff_seg.network import Network

pytestmark = pytest.mark.skipif(
    not ops.NATIVE, reason="the reference of the neighbour search cannot be traced"
)


@pytest.fixture
def network(load_config, tiny_opts):
    torch.manual_seed(0)
    small = ("MODEL.MASK_FORMER.DEC_LAYERS", 2)
    cfg = load_config("quick/shapes_cityscapes_panoptic", *tiny_opts, *small)
    return Network(build_model(cfg).eval())


@pytest.fixture
def images():
    return 255 * torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def assert_close(got, want):
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_network_gives_what_the_model_infers_from(network, images):
    model = network.model
    with torch.no_grad():
        logits, masks = network(images)
        (result, _) = model([{"image": image} for image in images])
    assert masks.shape[-2:] == (16, 24)
    scores = model.semantic_inference(
        logits[0], torch.nn.functional.interpolate(masks, (64, 96), mode="bilinear")[0]
    )
    torch.testing.assert_close(result["sem_seg"], scores, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_exported_network_gives_the_eager_result(network, images, tmp_path):
    program = torch.export.export(network, (images,))
    torch.export.save(program, tmp_path / "network.pt2")
    again = torch.export.load(tmp_path / "network.pt2").module()
    assert_close(again(images), network(images))


@torch.no_grad()
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_network_gives_the_eager_result(network, images, backend):
    compiled = torch.compile(network, fullgraph=True, dynamic=False, backend=backend)
    assert_close(compiled(images), network(images))
