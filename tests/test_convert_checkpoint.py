"""The program that recognises files of weights, covers models with them and writes them."""

import importlib
import os
import pickle
import re
import resource
import sys
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from published_shapes import (
    backbone_shapes,
    classification_shapes,
    segmentation_shapes,
    weights_of,
)
from safetensors.torch import load_file, save_file

from aff_seg.engine.checkpoint_file import read_checkpoint
from aff_seg.errors import UserError

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture
def convert(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("convert_checkpoint").convert


def table(output: str) -> dict[str, list[str]]:
    """Columns of each module in the printed table."""
    rows = re.findall(r"^(\S+) +(\d+) +(\d+) +(\d+) +(\d+) +(\d+ of \d+) *(\S*)$", output, re.M)
    return {row[0]: list(row[1:]) for row in rows}


def same_bits(found: dict, want: dict) -> bool:
    return found.keys() == want.keys() and all(
        found[name].dtype == value.dtype
        and found[name].contiguous().numpy().tobytes() == value.contiguous().numpy().tobytes()
        for name, value in want.items()
    )


def write(path: Path, weights: dict, **rest: object) -> None:
    if path.suffix == ".safetensors":
        save_file(weights, path)
    elif path.suffix == ".pkl":
        arrays = {name: value.numpy() for name, value in weights.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "matching_heuristics": True}))
    else:
        torch.save({"model": weights, **rest}, path)


@pytest.mark.parametrize(
    ("variant", "suffix"),
    [("mini", ".pth"), ("mini", ".pkl"), ("mini", ".safetensors"), ("base", ".pth")],
)
def test_classification_files_become_backbones(tmp_path, variant, suffix, convert, capsys):
    weights = weights_of(classification_shapes(variant))
    write(tmp_path / f"aff{suffix}", weights, epoch=299)
    convert(str(tmp_path / f"aff{suffix}"), str(tmp_path / "backbone.safetensors"))
    output = capsys.readouterr().out
    title = f"AFF classification file, AFF-{variant.capitalize()}, 1000 classes"
    left_out = "; left out: epoch" if suffix == ".pth" else ""
    assert output.startswith(f"{tmp_path / 'aff'}{suffix}: {title}{left_out}\n")
    (dropped,) = re.findall(r"^Not of this model, left out: (.*)$", output, re.M)
    assert sorted(dropped.split(", ")) == ["head.bias", "head.weight", "norm.bias", "norm.weight"]
    assert "A backbone alone: in a model the head starts from scratch." in output
    rows = table(output)
    assert rows["backbone.norms"][:4] == ["0", "8", "0", "0"] and rows["total"][5] == "99.9%"
    assert not any(name.startswith("sem_seg_head") for name in rows)
    want = {
        f"backbone.{name}": value
        for name, value in weights.items()
        if not name.startswith(("norm.", "head."))
    }
    assert same_bits(load_file(tmp_path / "backbone.safetensors"), want)


@pytest.mark.parametrize(
    ("variant", "classes", "queries", "learned"),
    [
        ("mini", 150, 100, True),
        pytest.param("tiny", 80, 100, False, marks=pytest.mark.slow),
        pytest.param("small", 8, 100, True, marks=pytest.mark.slow),
        pytest.param("base", 19, 250, True, marks=pytest.mark.slow),
        ("mini", 133, 100, False),
        ("mini", 100, 100, True),
    ],
)
def test_segmentation_files_cover_their_model(
    tmp_path, variant, classes, queries, learned, convert, capsys
):
    shapes = segmentation_shapes(variant, classes, queries=queries, learned_power=learned)
    weights = weights_of(shapes)
    write(tmp_path / "aff.pth", weights, iteration=7, trainer={"a": 1})
    convert(str(tmp_path / "aff.pth"), str(tmp_path / "all.safetensors"))
    output = capsys.readouterr().out
    title = f"AFF-{variant.capitalize()}, {classes} classes, {queries} queries"
    title = f"checkpoint of a training, AFF segmentation file, {title}"
    assert f"aff.pth: {title}; left out: iteration, trainer\n" in output
    total = table(output)["total"]
    assert total[:4] == [str(len(shapes)), "0", "0", "0"] and total[5] == "100.0%"
    assert same_bits(load_file(tmp_path / "all.safetensors"), weights)


def test_round_trips_keep_every_bit(tmp_path, convert):
    weights = weights_of(backbone_shapes("mini"))
    odd = torch.tensor([0.0, -0.0, torch.inf, torch.nan, 1e-42])
    weights["backbone.patch_embed.bn.weight"][:5] = odd
    weights["backbone.norm1.weight"] = torch.randn(256).t().half()
    weights["backbone.layers.0.blocks.0.attn.blank_v"] = torch.randn(64)[::2]
    tied = torch.randn(32)
    weights["backbone.norm0.weight"] = weights["backbone.norm0.bias"] = tied
    paths = [tmp_path / name for name in ("a.pth", "b.safetensors", "c.pth", "d.safetensors")]
    torch.save(weights, paths[0])
    for source, target in zip(paths, paths[1:], strict=False):
        convert(str(source), str(target))
        assert same_bits(read_checkpoint(str(target))["model"], weights)


def test_backbone_alone_is_taken_from_a_segmentation_file(tmp_path, convert, capsys):
    weights = weights_of(segmentation_shapes("mini", 150))
    write(tmp_path / "aff.pth", weights)
    convert(str(tmp_path / "aff.pth"), str(tmp_path / "backbone.pth"), part="backbone")
    rows = table(capsys.readouterr().out)
    assert rows["total"][1:] == ["0", "0", "0", "6370283 of 6370283", "100.0%"]
    want = {name: value for name, value in weights.items() if name.startswith("backbone.")}
    assert same_bits(torch.load(tmp_path / "backbone.pth", weights_only=True)["model"], want)


def test_pickles_of_detectron2_are_recognised(tmp_path, convert, capsys):
    weights = {"stem.conv1.weight": torch.randn(64, 3, 7, 7), "stem.fc.bias": torch.randn(1000)}
    source, target = tmp_path / "R-50.pkl", tmp_path / "R-50.safetensors"
    arrays = {name: value.numpy() for name, value in weights.items()}
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    source.write_bytes(pickle.dumps(content))
    convert(str(source), str(target))
    title = "pickle for Detectron2 by torchvision, file of another model; left out: __author__"
    assert f"{source}: {title}\n" in capsys.readouterr().out
    assert same_bits(load_file(target), weights)


def test_half_stores_floats_in_16_bits(tmp_path, convert):
    weights = {"a.weight": torch.randn(3, 4), "a.count": torch.tensor(7)}
    write(tmp_path / "model.pth", weights, iteration=5)
    convert(str(tmp_path / "model.pth"), str(tmp_path / "model.safetensors"), half=True)
    found = load_file(tmp_path / "model.safetensors")
    assert torch.equal(found["a.weight"], weights["a.weight"].half())
    assert torch.equal(found["a.count"], weights["a.count"])


def test_half_refuses_what_it_cannot_hold(tmp_path, convert):
    write(tmp_path / "model.pth", {"a.weight": torch.tensor([1.0, 7e4])})
    with pytest.raises(UserError, match="a.weight has numbers too large for 16 bits"):
        convert(str(tmp_path / "model.pth"), str(tmp_path / "model.safetensors"), half=True)
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["r50", "swin_tiny"])
def test_other_backbones_get_their_place(tmp_path, name, convert, load_config, capsys):
    model = build_model(load_config(f"ade20k/semantic/{name}"))
    trained = {n: w for n, w in model.backbone.state_dict().items() if not re.match(r"norm\d", n)}
    write(tmp_path / "imagenet.pth", trained | {"head.weight": torch.ones(1000, 8)})
    config = f"configs/ade20k/semantic/{name}.yaml"
    convert(str(tmp_path / "imagenet.pth"), str(tmp_path / "a.pth"), config_file=config)
    total = table(capsys.readouterr().out)["total"]
    assert total[0] == str(len(trained)) and total[2:4] == ["0", "1"]
    write(tmp_path / "own.pth", model.state_dict())
    convert(str(tmp_path / "own.pth"), str(tmp_path / "b.pth"))
    output = capsys.readouterr().out
    assert "own.pth: segmentation file with another backbone, 150 classes, 100 queries" in output


@pytest.mark.slow
def test_detectron2_itself_loads_a_backbone_made_for_its_model(tmp_path, convert, load_config):
    cfg = load_config("detectron2/mask_rcnn_aff_tiny_fpn_3x")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    weights = weights_of(classification_shapes("tiny"))
    write(tmp_path / "aff_tiny.pth", weights)
    paths = [str(tmp_path / name) for name in ("aff_tiny.pth", "backbone.pth", "config.yaml")]
    convert(*paths[:2], config_file=paths[2])
    model = build_model(cfg)
    DetectionCheckpointer(model).load(paths[1])
    state = model.backbone.bottom_up.state_dict()
    rest = set(weights) - {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert all(torch.equal(state[name], weights[name]) for name in rest)


def test_a_config_names_the_model_to_compare_with(tmp_path, convert, capsys):
    source = "demo/aff_shapes.safetensors"
    convert(source, str(tmp_path / "a.pth"))
    output = capsys.readouterr().out
    assert "AFF segmentation file, sizes of its own, 19 classes, 40 queries" in output
    assert "No published model to compare with: give --config-file" in output
    convert(source, str(tmp_path / "b.pth"), config_file="quick/shapes_demo")
    assert table(capsys.readouterr().out)["total"][1:4] == ["0", "0", "0"]
    with pytest.raises(UserError, match="does not fit the model of configs/coco.*nothing written"):
        convert(source, str(tmp_path / "c.pth"), config_file="configs/coco/instance/aff_mini.yaml")
    rows = table(capsys.readouterr().out)
    assert int(rows["backbone.layers.1"][2]) > 0  # wrong shape
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "b.pth"]


@pytest.mark.parametrize("change", ["missing", "reshaped", "unexpected"])
def test_what_does_not_match_is_counted_and_named(tmp_path, change, convert, capsys):
    weights = weights_of(segmentation_shapes("mini", 150))
    name = "sem_seg_head.predictor.decoder_norm.weight"
    if change == "unexpected":
        name = "sem_seg_head.predictor.extra.weight"
        weights[name] = torch.ones(2)
    elif change == "reshaped":
        weights[name] = torch.ones(3)
    else:
        del weights[name]
    write(tmp_path / "aff.pth", weights)
    convert(str(tmp_path / "aff.pth"), str(tmp_path / "b.pth"))
    output = capsys.readouterr().out
    columns = {"missing": 1, "reshaped": 2, "unexpected": 3}
    want = ["1" if column == columns[change] else "0" for column in (1, 2, 3)]
    for module in ("sem_seg_head.predictor", "total"):
        assert table(output)[module][1:4] == want
    label = "wrong shape" if change == "reshaped" else change
    assert f"{label}: {name}\n" in output


def test_bad_files_are_told_in_one_sentence(tmp_path, convert):
    source, target = tmp_path / "weights.pth", tmp_path / "out.safetensors"
    torch.save({"model": {"a": torch.ones(2)}}, source)
    folder = tmp_path / "folder.pth"
    folder.mkdir()
    (tmp_path / "same.pth").symlink_to(source)
    (tmp_path / "text.pkl").write_text("no pickle")
    (tmp_path / "cut.pkl").write_bytes(pickle.dumps({"a": b"x" * 99})[:40])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for arguments, message in (
        ((tmp_path / "gone.pth", target), "gone.pth does not exist; correct its path."),
        ((source, tmp_path / "out.pkl"), "out.pkl must end in .safetensors or .pth, which say"),
        ((source, tmp_path / "none" / "out.pth"), "none/out.pth: No such file or directory."),
        ((source, folder), "Cannot write"),
        ((source, tmp_path / "." / "same.pth"), "same.pth is the file to read; give another name"),
        ((tmp_path / "text.pkl", target), "text.pkl is damaged"),
        ((tmp_path / "cut.pkl", target), "cut.pkl is damaged or no pickle of weights."),
        ((tmp_path / "empty.safetensors", target), "empty.safetensors is damaged"),
    ):
        with pytest.raises(UserError) as caught:
            convert(*map(str, arguments))
        assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match=f"{source} has no weights of a backbone"):
        convert(str(source), str(target), part="backbone")
    torch.save({"model": {}}, source)
    with pytest.raises(UserError, match=f"{source} has no weights at all"):
        convert(str(source), str(target))
    assert not target.exists() and not list(tmp_path.glob(".*"))


def test_the_program_ends_with_one_line_for_code_in_a_file(tmp_path, convert, monkeypatch, capsys):
    source, target = tmp_path / "evil.pkl", tmp_path / "out.pth"
    source.write_bytes(pickle.dumps({"model": os.mkdir}))
    monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", str(source), str(target)])
    with pytest.raises(SystemExit) as end:
        sys.modules[convert.__module__].main()
    output, errors = capsys.readouterr()
    assert end.value.code == 1 and output == ""
    assert errors.startswith(f"convert_checkpoint.py: error: {source} holds more than tensors")
    assert errors.count("\n") == 1 and not target.exists()


@pytest.mark.parametrize("name", ["out.safetensors", "out.pth"])
def test_a_full_disk_leaves_the_old_file(tmp_path, name, convert):
    """A limit on the size of files stands for the disk."""
    source, target = tmp_path / "weights.pth", tmp_path / name
    torch.save({"model": {"a": torch.ones(500_000)}}, source)
    target.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(UserError, match=f"Cannot write {target}: File too large."):
            convert(str(source), str(target))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, "weights.pth"]
