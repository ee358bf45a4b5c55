"""Nothing mixes devices: the model runs on imagined GPU tensors, without a GPU."""

import torch
from detectron2.modeling import build_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from aff_seg.ops import reference


def _move_to_imagined_gpu(model: nn.Module) -> None:
    for module in model.modules():
        for name, value in list(module._parameters.items()):
            if value is not None:
                fake = torch.empty(value.shape, device="cuda")
                module._parameters[name] = nn.Parameter(fake)
        for name, value in list(module._buffers.items()):
            module._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device="cuda")


def test_forward_stays_on_the_gpu(load_config, tiny_opts, monkeypatch):
    # Imagined tensors have no values: choose neighbours without looking at them.
    monkeypatch.setattr(
        reference, "_smallest", lambda values, k: values.topk(k, largest=False).indices
    )
    monkeypatch.setattr(reference, "_BRUTE_FORCE_PAIRS", float("inf"))
    model = build_model(load_config("quick/shapes_cityscapes_panoptic", *tiny_opts))
    with FakeTensorMode():
        _move_to_imagined_gpu(model)
        tokens = model.backbone(torch.empty(2, 3, 68, 92, device="cuda"))
        outputs = model.sem_seg_head(tokens)
    assert outputs["pred_masks"].shape == (2, 12, 17, 23)
    assert outputs["pred_masks"].device.type == "cuda"
