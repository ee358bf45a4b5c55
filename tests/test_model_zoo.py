"""MODEL_ZOO.md is in step with the configs, the models and the published figures."""

import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from model_costs import cost
from published_shapes import classification_shapes, segmentation_shapes

from aff_seg.data.shapes import write_dataset
from aff_seg.engine.checkpoint import compare
from aff_seg.engine.recognition import names_of
from aff_seg.setup_cfg import load_cfg

REPO = Path(__file__).parents[1]
PAGE = (REPO / "MODEL_ZOO.md").read_text(encoding="utf-8")
VARIANTS = ("Mini", "Mini-1/5", "Tiny", "Tiny-1/5", "Small", "Small-1/5", "Base")
# Published, by section and column, for the variants that have a figure.
PUBLISHED = {
    ("ADE20K, semantic", "published mIoU"): "46.5 46.0 50.2 50.0 51.2 51.9",
    ("ADE20K, semantic", "published GFLOPs"): "48.3 39.9 64.6 51.1 87 67.2",
    ("COCO, instance", "published AP"): "42.3 42.3 45.3 44.5 46.4 45.7",
    ("COCO, instance", "published GFLOPs"): "148 120 204 152 281 206",
    ("Cityscapes, instance", "published AP"): "40.0 - 42.7 - 44.0 - 46.2",
    ("Cityscapes, panoptic", "published PQ"): "62.7 - 65.7 - 66.9 - 67.7",
    ("Cityscapes, panoptic", "PQ stuff"): "– - – - 70.8 - 71.5",
    ("Cityscapes, panoptic", "PQ things"): "– - – - 61.5 - 62.5",
    ("Cityscapes, panoptic", "AP"): "– - – - 44.2 - 46.2",
    ("Cityscapes, panoptic", "mIoU"): "– - – - 82.2 - 83.0",
    ("ImageNet, classification", "top-1"): "78.2 77.5 83.0 82.4 83.5 83.4 86.2",
    ("ImageNet, classification", "top-5"): "93.6 93.3 96.3 95.9 96.6 96.5 98.0",
    ("ImageNet, classification", "published GFLOPs"): "1.08 0.72 4 2.74 8.16 5.69 42.54",
    ("ImageNet, classification", "images/s"): "1337 1678 528 682 321 424 –",
}
SIZES = {
    "ADE20K, semantic": (512, 512),
    "COCO, instance": (800, 1067),
    "Cityscapes, instance": (1024, 2048),
    "Cityscapes, panoptic": (1024, 2048),
}
CLASSIFICATION = "ImageNet, classification"
# Folders of the files and of the configs.
FOLDERS = {
    "ADE20K, semantic": ("ade_sem", "ade20k/semantic"),
    "COCO, instance": ("coco_ins", "coco/instance"),
    "Cityscapes, instance": ("city_ins", "cityscapes/instance"),
    "Cityscapes, panoptic": ("city_pan", "cityscapes/panoptic"),
    CLASSIFICATION: ("classification", "ade20k/semantic"),
}


def tables() -> dict[str, list[dict[str, str]]]:
    """Rows of every section's table, by its heads."""
    found = {}
    for section in PAGE.split("\n## ")[1:]:
        lines = [line for line in section.splitlines() if line.startswith("|")]
        cells = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
        if cells:
            heads, _, *rows = cells
            found[section.splitlines()[0]] = [dict(zip(heads, r, strict=True)) for r in rows]
    return found


TABLES = tables()
ROWS = [
    pytest.param(section, row, id=row["file"] + " " + row["config"])
    for section, rows in TABLES.items()
    for row in rows
]


@cache
def model(config: str) -> torch.nn.Module:
    """The model of a config, names and shapes only."""
    cfg = load_cfg(str(REPO / config))
    with torch.device("meta"):
        return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)


def variant_of(row: dict[str, str]) -> str:
    return row["model"].removeprefix("AFF-").lower().replace("-1/5", "")


def test_every_published_result_has_a_row():
    assert set(TABLES) == {*SIZES, CLASSIFICATION}
    for (section, column), figures in PUBLISHED.items():
        want = {
            f"AFF-{name}": figure
            for name, figure in zip(VARIANTS, figures.split(), strict=False)
            if figure != "-"
        }
        assert {row["model"]: row[column] for row in TABLES[section]} == want, (section, column)


@pytest.mark.parametrize(("section", "row"), ROWS)
def test_rows_name_configs_and_files_of_their_model(section, row):
    name = row["model"].removeprefix("AFF-").lower().replace("-1/5", "_1_5th")
    files, configs = FOLDERS[section]
    if name == "base":  # one file of segmentation, for both tasks
        files = "city_pan" if section != CLASSIFICATION else files
        name, configs = "base_22kto1k_384", "cityscapes/panoptic"
    assert row["file"] == f"{files}/aff_{name}.pth"
    assert row["config"] == f"configs/{configs}/aff_{name.partition('_22k')[0]}.yaml"
    cfg = load_cfg(str(REPO / row["config"]))
    assert cfg.MODEL.AFF.DS_RATE == (0.2 if "1/5" in row["model"] else 0.25)
    if section != CLASSIFICATION:
        assert int(row["classes"]) == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES


@pytest.mark.parametrize(("section", "row"), ROWS)
def test_parameters_are_those_of_the_model(section, row):
    part = model(row["config"])
    if section == CLASSIFICATION:
        part = part.backbone
        shapes = classification_shapes(variant_of(row))
        learned = (s for n, s in shapes.items() if not re.search("running|num_batches", n))
        count = sum(torch.Size(shape).numel() for shape in learned)
        digits = len(row["published parameters"].removesuffix("M").partition(".")[2])
        assert f"{count / 1e6:.{digits}f}M" == row["published parameters"]
    assert f"{sum(p.numel() for p in part.parameters()):,}" == row["parameters"]


@pytest.mark.parametrize(("section", "row"), ROWS)
def test_files_of_the_published_names_and_shapes_cover_the_model(section, row):
    ours, variant = model(row["config"]), variant_of(row)
    if section == CLASSIFICATION:
        shapes = classification_shapes(variant)
    else:
        queries = 250 if variant == "base" else 100
        shapes = segmentation_shapes(
            variant, int(row["classes"]), queries=queries, learned_power="COCO" not in section
        )
    weights = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    match = compare(ours.state_dict(), names_of(ours, weights))
    assert match.fits and match.backbone_alone == (section == CLASSIFICATION)
    if section == CLASSIFICATION:
        missing = {name for name in match.missing if name.startswith("backbone.")}
        assert len(missing) == 8 and all("backbone.norm" in name for name in missing)
        assert not match.reshaped
    else:
        assert match.complete


@pytest.mark.parametrize("row", TABLES["ADE20K, semantic"], ids=lambda row: row["model"])
def test_flops_are_those_of_the_program(row):
    total = cost(row["config"], 512, 512).total_flops() / 1e9
    assert f"{total:.1f}" == row["our GFLOPs"]


@pytest.mark.parametrize("row", TABLES[CLASSIFICATION], ids=lambda row: row["model"])
def test_flops_of_backbones_are_those_of_the_program(row):
    side = int(row["pixels"])
    found = cost(row["config"], side, side)
    assert f"{found.total_flops('backbone') / 1e9:.2f}" == row["our GFLOPs"]
    # As the page says, the published count is this one without the operators.
    flops = found.flops["backbone"]
    less = (flops.total() - flops["cluster_attention"] - flops["point_conv"]) / 1e9
    assert less == pytest.approx(float(row["published GFLOPs"]), rel=0.02)
    assert f"{less:.2f}" in PAGE.partition("less these, ours are ")[2].partition("\n\n")[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "row"),
    [case for case in ROWS if case.values[0] in ("COCO, instance", *list(SIZES)[2:])],
)
def test_flops_of_large_images_are_those_of_the_program(section, row):
    """Masks that are resized to the image depend on the random weights, a little."""
    total = cost(row["config"], *SIZES[section]).total_flops() / 1e9
    assert total == pytest.approx(float(row["our GFLOPs"]), abs=0.06, rel=1e-3)


def test_recipes_without_weights_are_told():
    """Every config of AFF has a row, or is among what the last section lists."""
    told = {
        "ADE20K instance and panoptic": ("ade20k/instance/*", "ade20k/panoptic/*"),
        "COCO panoptic and semantic": ("coco/panoptic/*", "coco/semantic/*"),
        "Cityscapes semantic": ("cityscapes/semantic/*",),
        "AFF-Base on ADE20K and COCO": ("ade20k/*/aff_base.yaml", "coco/*/aff_base.yaml"),
        "the 1/5 variants on Cityscapes": ("cityscapes/*/*_1_5th.yaml",),
    }
    section = " ".join(PAGE.partition("## No published result")[2].split())
    assert all(words in section for words in told)
    configs = REPO / "configs"
    listed = {path for globs in told.values() for glob in globs for path in configs.glob(glob)}
    listed = {path for path in listed if path.name.startswith("aff_")}
    rows = {REPO / row["config"] for row in sum(TABLES.values(), [])}
    rows |= {configs / "cityscapes/instance/aff_base.yaml"}  # its row has the panoptic file
    assert listed == {*configs.glob("*/*/aff_*.yaml")} - rows


def test_the_example_is_a_row():
    file, config = re.search(r"for example `evaluate (\S+) (\S+)`", PAGE).groups()
    assert any((row["file"], row["config"]) == (file, config) for row in sum(TABLES.values(), []))


@pytest.mark.slow
def test_the_command_converts_and_evaluates(tmp_path):
    """On drawn shapes, with the checkpoint of the demo."""
    root, output = tmp_path / "shapes", tmp_path / "out"
    write_dataset(layout="cityscapes", root=root, train=1, val=2, size=(64, 96), progress=False)
    shutil.copy(REPO / "demo/aff_shapes.safetensors", tmp_path)
    function = re.search(r"```sh\n(evaluate\(\) \{.*?\n\})\n```", PAGE, re.S)[1]
    function = function.replace("aff/", f"{tmp_path}/")
    function = function.replace("--eval-only", f"--eval-only OUTPUT_DIR {output}")
    config = "configs/quick/shapes_demo.yaml"
    done = subprocess.run(
        ["bash", "-c", f"{function}\nevaluate aff_shapes.safetensors {config}"],
        **{"capture_output": True, "text": True, "check": False},
        env={**os.environ, "DETECTRON2_DATASETS": str(root)},
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^total .* 100\.0%$", done.stdout, re.M)
    assert "PQ" in done.stdout and (output / "results.json").is_file()
