"""The backbone as one graph."""

import pytest
import torch

from aff_seg import ops
from aff_seg.backbone.aff import AutoFocusFormer


@pytest.mark.skipif(not ops.NATIVE, reason="the reference of the neighbour search cannot be traced")
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_backbone_gives_the_eager_result(backend):
    torch.manual_seed(0)
    backbone = AutoFocusFormer(
        embed_dim=[16, 16, 16, 16], depths=[1, 1, 1, 1], num_heads=[2, 2, 2, 2], mlp_ratio=2.0
    ).eval()
    images = torch.randn(2, 3, 96, 128)
    compiled = torch.compile(backbone, fullgraph=True, dynamic=False, backend=backend)
    with torch.no_grad():
        want, got = backbone(images), compiled(images)
    for level, points in want.items():
        assert torch.equal(got[level].pos, points.pos)
        torch.testing.assert_close(got[level].feat, points.feat, rtol=1e-4, atol=1e-4)
        if points.survivors is not None:
            assert torch.equal(got[level].survivors, points.survivors)
