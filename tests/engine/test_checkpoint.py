"""Checkpoints are safe to read, loud about what fits, and whole after any interruption."""

import argparse
import contextlib
import logging
import os
import pickle
import random
import re
import resource
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from published_shapes import backbone_shapes, classification_shapes, weights_of
from torch import nn

from aff_seg.atomic_file import atomic_open
from aff_seg.engine.checkpoint import Checkpointer, compare
from aff_seg.engine.checkpoint_file import is_intact, read_checkpoint
from aff_seg.errors import UserError
from aff_seg.setup_cfg import load_cfg


def model(classes=4, width=8):
    return nn.ModuleDict(
        {
            "body": nn.Sequential(nn.Linear(3, width), nn.LayerNorm(width)),
            "class_embed": nn.Linear(width, classes),
        }
    )


class Loop:
    """State such as Detectron2's trainers keep."""

    def __init__(self, net):
        self.iter = 0
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)

    def step(self, net):
        net["class_embed"](net["body"](torch.ones(2, 3))).sum().backward()
        self.optimizer.step()
        self.iter += 1

    def state_dict(self):
        return {"iteration": self.iter, "_trainer": {"optimizer": self.optimizer.state_dict()}}

    def load_state_dict(self, state):
        self.iter = state["iteration"]
        self.optimizer.load_state_dict(state["_trainer"]["optimizer"])


def trained(tmp_path, steps=2, name="model_0000001"):
    net = model()
    loop = Loop(net)
    for _ in range(steps):
        loop.step(net)
    Checkpointer(net, str(tmp_path), trainer=loop).save(name, iteration=loop.iter)
    return net


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


def load_error(path, net=None):
    with pytest.raises(UserError) as caught:
        Checkpointer(net or model()).load(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("wrapping", [None, "model", "state_dict", "safetensors"])
def test_weights_load_whatever_their_wrapping(tmp_path, wrapping, caplog):
    net, path = model(), str(tmp_path / "weights.pth")
    if wrapping == "safetensors":
        path = str(tmp_path / "weights.safetensors")
        safetensors.torch.save_file(net.state_dict(), path)
    else:
        weights = {f"module.{k}": v for k, v in net.state_dict().items()}
        torch.save(weights if wrapping is None else {wrapping: weights, "epoch": 3}, path)
    other = model()
    with caplog.at_level(logging.INFO):
        Checkpointer(other).load(path)
    assert same(net.state_dict(), other.state_dict())
    assert "6 of 6 keys matched." in caplog.text


def test_other_class_count_loads_the_rest_and_says_what_not(tmp_path, caplog):
    net = model(classes=4)
    torch.save({"model": net.state_dict()}, tmp_path / "weights.pth")
    other = model(classes=7)
    initial = other["class_embed"].weight.detach().clone()
    with caplog.at_level(logging.INFO):
        Checkpointer(other).load(str(tmp_path / "weights.pth"))
    assert same(net["body"].state_dict(), other["body"].state_dict())
    assert torch.equal(other["class_embed"].weight, initial)
    assert "4 of 6 keys matched; 2 differ in shape (class_embed.weight, " in caplog.text
    assert "class_embed.weight (7, 8): the file has (4, 8)" in caplog.text
    assert caplog.text.count("  class_embed.weight") == 1


def test_extra_and_missing_keys_are_named(tmp_path, caplog):
    state = model().state_dict()
    state["extra.weight"] = state.pop("class_embed.bias")
    torch.save({"model": state}, tmp_path / "weights.pth")
    with caplog.at_level(logging.INFO):
        Checkpointer(model()).load(str(tmp_path / "weights.pth"))
    assert "5 of 6 keys matched; 1 are not in the file (class_embed.bias); " in caplog.text
    assert "Not loaded, left at their initial values:\n  class_embed.bias" in caplog.text
    assert "In the file, but not in this model:\n  extra.weight" in caplog.text


def test_other_variant_below_half_is_refused_and_loads_nothing(tmp_path):
    torch.save({"model": model(width=16).state_dict()}, tmp_path / "weights.pth")
    net = model(width=8)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    message = load_error(tmp_path / "weights.pth", net)
    assert "does not fit this model and was not loaded: 1 of 6 keys matched" in message
    assert "5 differ in shape (body.0.weight, body.0.bias, body.1.weight, ...)" in message
    assert same(before, net.state_dict())


VARIANTS = ("mini", "tiny")


@pytest.fixture(scope="module")
def states():
    """State of every variant, names and shapes only."""
    configs = Path(__file__).parents[2] / "configs"
    states = {}
    for folder in ("cityscapes/panoptic", "ade20k/semantic", "coco/instance"):
        for variant in VARIANTS if folder.startswith("city") else ("mini",):
            cfg = load_cfg(str(configs / folder / f"aff_{variant}.yaml"))
            state = META_ARCH_REGISTRY.get("MaskFormer")(cfg).state_dict()
            states[folder, variant] = {name: value.to("meta") for name, value in state.items()}
    return states


@pytest.mark.parametrize("theirs", VARIANTS)
@pytest.mark.parametrize("ours", VARIANTS)
def test_checkpoints_of_other_variants_do_not_fit(states, ours, theirs):
    match = compare(states["cityscapes/panoptic", ours], states["cityscapes/panoptic", theirs])
    assert match.fits == match.complete == (ours == theirs)


@pytest.mark.parametrize("folder", ["ade20k/semantic", "coco/instance"])
def test_checkpoints_of_other_tasks_fit_but_for_a_few_keys(states, folder):
    match = compare(states["cityscapes/panoptic", "mini"], states[folder, "mini"])
    assert match.fits and not match.complete
    assert match.reshaped == [
        "sem_seg_head.predictor.class_embed.weight",
        "sem_seg_head.predictor.class_embed.bias",
        "criterion.empty_weight",
    ]
    assert all("shepard_power" in name for name in match.missing)


def test_missing_file_is_named(tmp_path):
    assert "does not exist; correct its path" in load_error(tmp_path / "gone.pth")


@pytest.mark.parametrize(
    ("suffix", "harm"),
    [
        *((".pth", harm) for harm in ("truncated", "flipped", "garbage", "empty")),
        *((".safetensors", harm) for harm in ("truncated", "garbage", "empty")),
    ],
)
def test_damaged_file_is_named(tmp_path, suffix, harm):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"model": model(width=64).state_dict()}, path)
    else:
        safetensors.torch.save_file(model(width=64).state_dict(), path)
    data = path.read_bytes()
    if harm == "flipped":
        middle = data.index(b"data/0") + 200
        data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    else:
        data = {"truncated": data[: len(data) // 2], "garbage": b"\x00abc" * 99, "empty": b""}[harm]
    path.write_bytes(data)
    assert "is damaged" in load_error(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_changed_anywhere_loads_or_is_named(tmp_path, legacy):
    """Damage makes what reads files raise errors of every kind."""
    path = tmp_path / "weights.pth"
    content = {"model": model().state_dict(), "score": np.float64(3)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged[: draw.choice((None, None, draw.randrange(len(whole))))])
        with contextlib.suppress(UserError):
            read_checkpoint(str(path))
        is_intact(str(path))


class Evil:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["weights.pth", "weights.pkl", "zipped.pkl"])
def test_pickle_that_wants_to_run_code_is_refused_and_does_not_run(tmp_path, name):
    path, proof = tmp_path / name, tmp_path / "ran"
    if name == "weights.pkl":
        path.write_bytes(pickle.dumps({"model": Evil(proof)}))
    else:
        torch.save({"model": model().state_dict(), "trainer": Evil(proof)}, path)
    assert "can run code" in load_error(path)
    assert not proof.exists()


def test_file_without_weights_is_refused(tmp_path):
    torch.save({"model": {"a": 1}}, tmp_path / "weights.pth")
    assert "no map from parameter names to tensors" in load_error(tmp_path / "weights.pth")


def test_no_matching_by_similarity(tmp_path):
    state = {f"net.{k}": v for k, v in model().state_dict().items()}
    torch.save({"model": state, "matching_heuristics": True}, tmp_path / "weights.pth")
    assert "0 of 6 keys matched" in load_error(tmp_path / "weights.pth")


def test_training_state_resumes_as_tensors_only(tmp_path):
    net = trained(tmp_path, steps=3)
    other = model()
    loop = Loop(other)
    extra = Checkpointer(other, str(tmp_path), trainer=loop).resume_or_load("", resume=True)
    assert extra == {"iteration": 3}
    assert loop.iter == 3
    assert same(net.state_dict(), other.state_dict())
    assert loop.optimizer.state_dict()["state"][0]["step"] == 3
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000001.pth"]


def test_resume_goes_back_to_the_newest_intact_checkpoint(tmp_path, caplog):
    trained(tmp_path, steps=1, name="model_0000001")
    good = trained(tmp_path, steps=2, name="model_0000003")
    trained(tmp_path, steps=3, name="model_0000005")
    torch.save({"model": {}}, tmp_path / "pretrained.pth")
    for age, name in enumerate(("model_0000005", "model_0000003", "model_0000001")):
        os.utime(tmp_path / f"{name}.pth", (1e9 - age, 1e9 - age))
    (tmp_path / "model_0000005.pth").write_bytes(b"half")
    net = model()
    loop = Loop(net)
    Checkpointer(net, str(tmp_path), trainer=loop).resume_or_load("", resume=True)
    assert loop.iter == 2
    assert same(net.state_dict(), good.state_dict())
    assert "model_0000005.pth is damaged: trying the one before." in caplog.text


def test_resume_without_tag_or_with_a_wrong_one_takes_the_newest(tmp_path):
    trained(tmp_path, steps=2)
    for tag in (None, "model_0000009.pth"):
        if tag is None:
            os.remove(tmp_path / "last_checkpoint")
        else:
            (tmp_path / "last_checkpoint").write_text(tag)
        net = model()
        loop = Loop(net)
        checkpointer = Checkpointer(net, str(tmp_path), trainer=loop)
        assert checkpointer.has_checkpoint()
        checkpointer.resume_or_load("", resume=True)
        assert loop.iter == 2


def test_nothing_to_resume_starts_from_the_weights(tmp_path):
    net = trained(tmp_path)
    weights = str(tmp_path / "model_0000001.pth")
    other = model()
    checkpointer = Checkpointer(other, str(tmp_path / "new"), trainer=Loop(other))
    assert not checkpointer.has_checkpoint()
    checkpointer.resume_or_load(weights, resume=True)
    assert same(net.state_dict(), other.state_dict())
    assert checkpointer.checkpointables["trainer"].iter == 0


def resume_error(folder, net):
    with pytest.raises(UserError) as caught:
        Checkpointer(net, str(folder), trainer=Loop(net)).resume_or_load("", resume=True)
    return str(caught.value)


def test_resume_refuses_what_is_not_of_this_training(tmp_path):
    trained(tmp_path)
    assert "of this training: 4 of 6 keys matched" in resume_error(tmp_path, model(classes=9))
    Checkpointer(model(), str(tmp_path)).save("model_0000009")
    assert "it lacks trainer" in resume_error(tmp_path, model())
    for file in tmp_path.glob("*.pth"):
        file.write_bytes(b"")
    assert "No checkpoint in" in resume_error(tmp_path, model())


def test_resume_refuses_another_optimizer(tmp_path):
    trained(tmp_path)
    net = model()
    loop = Loop(net)
    loop.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(UserError, match="with this SOLVER: trainer does not fit"):
        Checkpointer(net, str(tmp_path), trainer=loop).resume_or_load("", resume=True)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "model_final.pth"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"), atomic_open(str(path)) as file:
        file.write(b"new, half wri")
        raise OSError("disk full")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model_final.pth"]


def test_no_room_for_a_checkpoint_is_one_sentence(tmp_path):
    trained(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    net = nn.Linear(1000, 100)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(UserError, match="File too large; make room and go on") as caught:
            Checkpointer(net, str(tmp_path)).save("model_0000002")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"Cannot write checkpoint {tmp_path}/model_0000002.pth: " in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000001.pth"]


def test_kill_in_the_middle_of_a_write_leaves_a_state_to_resume_from(tmp_path):
    trained(tmp_path, steps=2)
    script = f"""
        import os, signal, torch
        from aff_seg.engine.checkpoint import Checkpointer

        def half_a_save(state, file):
            file.write(b"PK half of a checkpoint")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        torch.save = half_a_save
        Checkpointer(torch.nn.Linear(1, 1), {str(tmp_path)!r}).save("model_0000001")
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], timeout=120)
    assert killed.returncode == -9
    net = model()
    loop = Loop(net)
    Checkpointer(net, str(tmp_path), trainer=loop).resume_or_load("", resume=True)
    assert loop.iter == 2
    trained(tmp_path, steps=4)  # the same name again
    assert is_intact(str(tmp_path / "model_0000001.pth"))
    assert read_checkpoint(str(tmp_path / "model_0000001.pth"))["iteration"] == 4


def test_files_of_old_torch_versions_load(tmp_path):
    path = tmp_path / "old.pth"
    state = model().state_dict()
    torch.save({"model": state}, path, _use_new_zipfile_serialization=False)
    found = read_checkpoint(str(path))["model"]
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_resume_with_another_optimizer_is_refused(tmp_path):
    def checkpointer(kind):
        inner = model()
        optimizer = kind(inner.parameters(), lr=0.1)
        trainer = types.SimpleNamespace(
            state_dict=lambda: {"_trainer": {"optimizer": optimizer.state_dict()}},
            load_state_dict=lambda state: None,
        )
        return Checkpointer(inner, str(tmp_path), trainer=trainer)

    checkpointer(torch.optim.AdamW).save("model_final")
    checkpointer(torch.optim.AdamW).resume_or_load("", resume=True)
    with pytest.raises(UserError, match="restore SOLVER.OPTIMIZER"):
        checkpointer(torch.optim.SGD).resume_or_load("", resume=True)


def test_what_a_killed_process_left_is_removed(tmp_path):
    stale = tmp_path / ".model_0000000.pth.unfinished"
    stale.write_bytes(b"half")
    trained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "last_checkpoint",
        "model_0000001.pth",
    ]


@pytest.mark.parametrize("convert", ["arrays", "tensors"])
def test_pickles_of_detectron2_load_by_their_exact_names(tmp_path, convert):
    net, path = model(), tmp_path / "weights.pkl"
    state = {k: v.numpy() if convert == "arrays" else v for k, v in net.state_dict().items()}
    content = {"model": state, "__author__": "third_party", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content))
    other = model()
    Checkpointer(other).load(str(path))
    assert same(net.state_dict(), other.state_dict())
    state["net.body.0.weight"] = state.pop("body.0.weight")
    path.write_bytes(pickle.dumps(content))
    initial = other["body"][0].weight.clone()
    Checkpointer(other).load(str(path))
    assert torch.equal(other["body"][0].weight, initial)


def test_names_of_caffe2_become_those_of_detectron2(tmp_path):
    path = tmp_path / "weights.pkl"
    blobs = {"conv1_w": np.ones((2, 3)), "res_conv1_bn_s": np.ones(2), "conv1_w_momentum": 0}
    blobs = {name: np.float32(value) for name, value in blobs.items()}
    for content in (blobs, {"blobs": blobs}):
        path.write_bytes(pickle.dumps(content, 2))
        found = read_checkpoint(str(path))["model"]
        assert {name: tuple(w.shape) for name, w in found.items()} == {
            "stem.conv1.weight": (2, 3),
            "stem.conv1.norm.weight": (2,),
        }


def test_states_of_numpy_beside_the_weights_do_no_harm(tmp_path):
    path = tmp_path / "aff_mini.pth"
    state = {
        **{"model": model().state_dict(), "max_accuracy": np.float64(78.2), "epoch": 299},
        **{"rng": torch.get_rng_state(), "np_rng": np.random.get_state()},
        **{"random": random.getstate(), "empty": np.zeros(0), "flags": np.ones(2, bool)},
    }
    torch.save(state, path)
    found = read_checkpoint(str(path))
    assert found["max_accuracy"] == 78.2 and found["random"] == state["random"]
    assert (found["np_rng"][1] == state["np_rng"][1]).all()
    Checkpointer(model()).load(str(path))


@pytest.mark.parametrize("name", ["weights.pth", "weights.pkl"])
def test_a_file_that_wants_more_says_how_to_get_its_weights(tmp_path, name):
    """The command of the message works, where the file is trusted."""
    path, net = tmp_path / name, model()
    content = {"model": net.state_dict(), "args": argparse.Namespace(lr=0.1)}
    path.write_bytes(pickle.dumps(content)) if name == "weights.pkl" else torch.save(content, path)
    message = load_error(path)
    assert f"{path} holds more than tensors (argparse.Namespace) and was not loaded" in message
    command = re.search(r"with (python -c \".*\") and take weights.pth\.", message)[1]
    command = f"{sys.executable} {command.removeprefix('python ')}"
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, timeout=120)
    other = model()
    Checkpointer(other).load(str(tmp_path / "weights.pth"))
    assert same(net.state_dict(), other.state_dict())


@pytest.fixture(scope="module")
def whole_models():
    """AFF-Mini and AFF-Base for Cityscapes, each with the norm of the head that the trap is."""
    configs = Path(__file__).parents[2] / "configs" / "cityscapes" / "panoptic"
    return {
        variant: META_ARCH_REGISTRY.get("MaskFormer")(
            load_cfg(str(configs / f"aff_{variant}.yaml"))
        )
        for variant in ("mini", "base")
    }


@pytest.mark.parametrize(
    ("variant", "kind"),
    [("mini", ".pth"), ("mini", ".pkl"), ("mini", ".safetensors"), ("base", ".pth")],
)
def test_classification_files_load_as_they_are(tmp_path, variant, kind, whole_models, caplog):
    net, path = whole_models[variant], tmp_path / f"aff{kind}"
    weights = weights_of(classification_shapes(variant))
    if kind == ".safetensors":
        safetensors.torch.save_file(weights, path)
    elif kind == ".pkl":
        arrays = {name: value.numpy() for name, value in weights.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "matching_heuristics": True}))
    else:
        torch.save({"model": weights, "epoch": 299, "np_rng": np.random.get_state()}, path)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with caplog.at_level(logging.INFO):
        Checkpointer(net).load(str(path))
    assert re.search("left out: 4 keys .*head.weight", caplog.text)
    after = net.state_dict()
    for name, value in after.items():
        given = weights.get(name.removeprefix("backbone.")) if "backbone." in name else None
        assert torch.equal(value, before[name] if given is None else given), name
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    keys = len(weights) - 4
    assert lines[0] == (
        f"{path} gives a backbone, {keys} of {keys + 8} keys of it matched: the head "
        "starts from scratch."
    )
    assert len(lines) == 2 and lines[1].startswith("Not loaded, left at their initial values:")
    assert lines[1].count("\n") == 8 and lines[1].count("backbone.norm") == 8


def test_a_whole_backbone_loads_with_one_line(tmp_path, whole_models, caplog):
    weights = weights_of(backbone_shapes("mini"))
    torch.save(weights, tmp_path / "backbone.pth")
    Checkpointer(whole_models["mini"]).load(str(tmp_path / "backbone.pth"))
    state = whole_models["mini"].backbone.state_dict(prefix="backbone.")
    assert all(torch.equal(state[name], value) for name, value in weights.items())
    (line,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    keys = len(weights)
    assert f"backbone, {keys} of {keys} keys of it matched: the head starts from scratch." in line


def test_a_file_with_another_head_says_how_to_take_its_backbone(tmp_path, whole_models):
    weights = weights_of(backbone_shapes("mini")) | {"roi_heads.weight": torch.ones(3)}
    torch.save(weights, tmp_path / "other.pth")
    message = load_error(tmp_path / "other.pth", whole_models["mini"])
    assert "; only its backbone fits, which tools/convert_checkpoint.py --part backbone" in message
