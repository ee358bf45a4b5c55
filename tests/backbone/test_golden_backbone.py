"""Clustering and backbone against the published implementation."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from golden_cases import Case, assert_gradients, fill_weights, noise

import aff_seg
from aff_seg.backbone.clustering import nearest_clusters, path_order

CONFIGS = {
    "backbone_base_160x256": "cityscapes/panoptic/aff_base",
    "backbone_mini_128x160": "cityscapes/panoptic/aff_mini",
    "backbone_mini_144x176": "cityscapes/panoptic/aff_mini",
    "backbone_mini_1_5th_176x160": "coco/instance/aff_mini_1_5th",
    "backbone_small_128x160": "ade20k/semantic/aff_small",
}


def _backbone(config: str) -> torch.nn.Module:
    cfg = get_cfg()
    aff_seg.add_aff_config(cfg)
    cfg.merge_from_file(f"configs/{config}.yaml")
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.AFF.DROP_PATH_RATE = 0.0
    backbone = build_backbone(cfg)
    fill_weights(backbone)
    return backbone


@pytest.mark.parametrize(
    "name",
    [
        "clustering_grid_32x40_m8",
        "clustering_grid_33x25_m8",
        "clustering_random_48x128_m24",
        "clustering_random_64x96_m8",
    ],
)
def test_clustering(name, device):
    case = Case(name)
    pos = torch.from_numpy(case["pos"]).float().to(device)
    m = case.info["m"]

    order = path_order(pos, tuple(case.info["size"]), m)
    assert np.array_equal(order.cpu().numpy(), case["order"])

    ordered = pos.gather(1, order[..., None].expand(-1, -1, 2))
    nearest = nearest_clusters(ordered, m, case.info["nnc"])
    assert np.array_equal(nearest.cpu().numpy(), case["nearest"])


def _sorted_by_yx(points):
    pos, feat = points.pos.cpu(), points.feat.cpu()
    x, y = pos.unbind(-1)
    order = (y * 4096 + x).argsort(dim=1)[..., None]
    return (
        pos.gather(1, order.expand(-1, -1, 2)),
        feat.gather(1, order.expand(-1, -1, feat.shape[-1])),
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_backbone(name, device):
    case = Case(name)
    backbone = _backbone(CONFIGS[name]).eval().to(device)
    with torch.no_grad():
        out = backbone(noise(case.info["input"], case.info["seed"]).to(device))
    for level, points in out.items():
        pos, feat = _sorted_by_yx(points)
        assert np.array_equal(pos.numpy(), case[f"{level}_pos"]), level
        rows = torch.from_numpy(case[f"{level}_rows"])
        want = torch.from_numpy(case[level])
        torch.testing.assert_close(feat[:, rows], want, rtol=1e-4, atol=1e-4, msg=level)
        np.testing.assert_allclose(feat.norm(dim=1).numpy(), case[f"{level}_norm"], rtol=1e-4)


def test_backbone_gradients(device):
    case = Case("backbone_mini_train_128x144")
    backbone = _backbone("cityscapes/panoptic/aff_mini").train().to(device)
    out = backbone(noise(case.info["input"], case.info["seed"]).to(device))
    loss = 0.0
    for level, points in out.items():
        pos, feat = _sorted_by_yx(points)
        assert np.array_equal(pos.numpy(), case[f"{level}_pos"]), level
        loss = loss + (feat * noise(feat.shape, case.info["seed"] + int(level[-1]))).sum()
    loss.backward()
    assert_gradients(backbone, case)
