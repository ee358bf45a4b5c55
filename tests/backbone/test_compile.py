"""The backbone as one graph."""

import pytest
import torch

from aff_seg import ops
from aff_seg.backbone.aff import AutoFocusFormer

pytestmark = pytest.mark.skipif(
    not ops.NATIVE, reason="the reference of the neighbour search cannot be traced"
)


def _backbone() -> AutoFocusFormer:
    return AutoFocusFormer(
        embed_dim=[16, 16, 16, 16], depths=[1, 1, 1, 1], num_heads=[2, 2, 2, 2], mlp_ratio=2.0
    ).eval()


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_backbone_gives_the_eager_result(backend):
    torch.manual_seed(0)
    backbone, images = _backbone(), torch.randn(2, 3, 96, 128)
    compiled = torch.compile(backbone, fullgraph=True, dynamic=False, backend=backend)
    with torch.no_grad():
        want, got = backbone(images), compiled(images)
    for level, points in want.items():
        assert torch.equal(got[level].pos, points.pos)
        torch.testing.assert_close(got[level].feat, points.feat, rtol=1e-4, atol=1e-4)
        if points.survivors is not None:
            assert torch.equal(got[level].survivors, points.survivors)


class _Features(torch.nn.Module):
    def __init__(self, backbone: AutoFocusFormer):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(points.feat for points in self.backbone(images).values())


def test_exported_backbone_gives_the_eager_result():
    features, images = _Features(_backbone()), torch.randn(1, 3, 52, 84)
    with torch.no_grad():
        # First the export: what it traces with must not be remembered.
        exported = torch.export.export(features, (images,)).module()
        want = features(images)
        for a, b in zip(exported(images), want, strict=True):
            assert type(b) is torch.Tensor
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
