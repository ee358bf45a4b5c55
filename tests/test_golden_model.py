"""Whole model, loss and inference against the published implementation."""

import json

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from golden_cases import Case, assert_gradients, fill_weights, noise

import aff_seg

CONFIGS = {
    "model_ade20k_semantic_mini": "ade20k/semantic/aff_mini",
    "model_cityscapes_panoptic_mini": "cityscapes/panoptic/aff_mini",
    "model_coco_instance_tiny_1_5th": "coco/instance/aff_tiny_1_5th",
    "head_train_cityscapes_panoptic_mini": "cityscapes/panoptic/aff_mini",
    "loss_cityscapes_panoptic": "cityscapes/panoptic/aff_mini",
    "inference_cityscapes_panoptic": "cityscapes/panoptic/aff_mini",
    "inference_coco_instance": "coco/instance/aff_mini",
}


def _model(name: str, device: torch.device) -> torch.nn.Module:
    cfg = get_cfg()
    aff_seg.add_aff_config(cfg)
    cfg.merge_from_file(f"configs/{CONFIGS[name]}.yaml")
    cfg.MODEL.DEVICE = device.type
    cfg.MODEL.AFF.DROP_PATH_RATE = 0.0
    return build_model(cfg)


def _check_semantic(case: Case, prefix: str, sem_seg: torch.Tensor) -> None:
    sem_seg = sem_seg.cpu()
    assert np.array_equal(sem_seg.argmax(0).numpy(), case[f"{prefix}sem_seg_argmax"])
    norm = sem_seg.flatten(1).norm(dim=1).numpy()
    np.testing.assert_allclose(norm, case[f"{prefix}sem_seg_norm"], rtol=1e-4)


def _check_panoptic(case: Case, prefix: str, panoptic) -> None:
    segment_map, segments = panoptic
    assert np.array_equal(segment_map.cpu().numpy(), case[f"{prefix}panoptic"])
    assert segments == json.loads(str(case[f"{prefix}segments"]))


@pytest.mark.parametrize("name", [n for n in CONFIGS if n.startswith("model_")])
def test_model(name, device):
    case = Case(name)
    model = _model(name, device).eval()
    fill_weights(model)
    batch = []
    for i, shape in enumerate(case.info["inputs"]):
        image = noise(shape, case.info["seed"] + i).clamp(-2, 2) * 50 + 120
        height, width = case.info.get("request", shape[1:])
        batch.append({"image": image, "height": height, "width": width})
    with torch.no_grad():
        outputs = model.sem_seg_head(model.backbone(model.preprocess(batch).tensor))
        results = model(batch)
    want = torch.from_numpy(case["pred_logits"])
    torch.testing.assert_close(outputs["pred_logits"].cpu(), want, rtol=1e-4, atol=1e-4)
    masks = outputs["pred_masks"].cpu()
    want = torch.from_numpy(case["pred_masks"])
    torch.testing.assert_close(masks[:, ::10], want, rtol=1e-3, atol=1e-3)
    norm = masks.flatten(2).norm(dim=2).numpy()
    np.testing.assert_allclose(norm, case["pred_masks_norm"], rtol=1e-3)
    for i, result in enumerate(results):
        if f"{i}:sem_seg_argmax" in case.arrays:
            _check_semantic(case, f"{i}:", result["sem_seg"])
        if f"{i}:panoptic" in case.arrays:
            _check_panoptic(case, f"{i}:", result["panoptic_seg"])


def test_head_gradients(device):
    name = "head_train_cityscapes_panoptic_mini"
    case = Case(name)
    model = _model(name, device).train()
    fill_weights(model)
    seed = case.info["seed"]
    outputs = model.sem_seg_head(model.backbone(noise(case.info["input"], seed).to(device)))
    loss = 0.0
    for place, output in enumerate(("pred_logits", "pred_masks"), 1):
        weight = noise(outputs[output].shape, seed + place).to(device)
        loss = loss + (outputs[output] * weight).sum()
    loss.backward()
    assert abs(loss.item() - float(case["loss"])) <= 1e-3 * abs(float(case["loss"]))
    assert_gradients(model, case)


def test_loss(device):
    name = "loss_cityscapes_panoptic"
    case = Case(name)
    info = case.info
    criterion = _model(name, device).criterion
    height, width = info["size"]
    queries = (1, info["queries"])
    outputs = {
        "pred_logits": noise((*queries, info["classes"] + 1), info["seed"]).to(device),
        "pred_masks": 3 * noise((*queries, height // 4, width // 4), info["seed"] + 1).to(device),
    }
    wanted = np.unpackbits(case["masks"], axis=-1)[..., :width]
    target = {
        "labels": torch.from_numpy(case["labels"]).to(device),
        "masks": torch.from_numpy(wanted.astype(np.float32)).to(device),
    }
    torch.manual_seed(0)
    runs = [criterion(outputs, [target]) for _ in range(32)]
    for loss in ("loss_ce", "loss_mask", "loss_dice"):
        mean = torch.stack([run[loss] for run in runs]).mean().item()
        want = float(case[f"{loss}:mean"])
        error = float(case[f"{loss}:std"]) / len(runs) ** 0.5
        assert abs(mean - want) <= 0.01 * want + 4 * error, (loss, mean, want)


def _inference_logits(info) -> tuple[torch.Tensor, torch.Tensor]:
    rs = np.random.RandomState(info["seed"])
    queries, classes = info["queries"], info["classes"]
    height, width = info["size"]
    y, x = np.mgrid[:height, :width]
    logits = rs.standard_normal((queries, classes + 1))
    masks = []
    for i in range(queries):
        cy, cx = rs.uniform(0, height), rs.uniform(0, width)
        ry, rx = rs.uniform(3, height / 5), rs.uniform(3, width / 5)
        masks.append(4 - 4 * (((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2))
        label = rs.randint(0, classes) if i % 3 == 0 else classes
        logits[i, label] += rs.uniform(3, 12)
    masks = np.maximum(np.stack(masks), -9)
    masks = masks + 0.1 * rs.standard_normal(masks.shape)
    return torch.from_numpy(logits.astype(np.float32)), torch.from_numpy(masks.astype(np.float32))


@pytest.mark.parametrize("name", [n for n in CONFIGS if n.startswith("inference_")])
def test_inference(name, device):
    case = Case(name)
    model = _model(name, device)
    logits, masks = (x.to(device) for x in _inference_logits(case.info))
    if "sem_seg_argmax" in case.arrays:
        _check_semantic(case, "", model.semantic_inference(logits, masks))
        _check_panoptic(case, "", model.panoptic_inference(logits, masks))
    instances = model.instance_inference(logits, masks).to("cpu")
    order = instances.scores.argsort(descending=True, stable=True)
    np.testing.assert_allclose(instances.scores[order].numpy(), case["scores"], rtol=1e-4)
    assert np.array_equal(instances.pred_classes[order].numpy(), case["classes"])
    areas = instances.pred_masks[order].flatten(1).sum(1).numpy()
    assert np.array_equal(areas, case["mask_areas"])
