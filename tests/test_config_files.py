"""Config files are found: Detectron2's wherever it is installed, ours in an installed package."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from detectron2.config import get_cfg
from detectron2.utils.file_io import PathManager

from aff_seg import add_aff_config
from aff_seg.config_files import DETECTRON2_CONFIGS, config_folder
from aff_seg.errors import UserError
from aff_seg.setup_cfg import load_cfg

REPO = Path(__file__).parents[1]


def test_a_source_tree_has_its_configs_beside_the_package():
    assert config_folder() == REPO / "configs"


@pytest.mark.parametrize(
    "name", ["COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x", "Base-RetinaNet"]
)
def test_detectron2s_configs_are_bases_in_any_program(name, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"_BASE_: {DETECTRON2_CONFIGS}{name}.yaml\nSEED: 5\n")
    expected = get_cfg()
    installed = Path(sys.modules["detectron2"].__file__).parent / "model_zoo" / "configs"
    expected.merge_from_file(str(installed / f"{name}.yaml"))
    expected.SEED = 5
    cfg = get_cfg()
    # Without code in yaml, though Base-RetinaNet has some.
    cfg.merge_from_file(str(path), allow_unsafe=False)
    assert cfg == expected
    add_aff_config(expected)
    expected.MODEL.DEVICE = "cpu"
    expected.INPUT.DATASET_MAPPER_NAME = "detectron2"
    assert load_cfg(str(path), ["MODEL.DEVICE", "cpu"]) == expected


def test_what_detectron2_does_not_have_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    address = f"{DETECTRON2_CONFIGS}COCO-Detection/nothing.yaml"
    path.write_text(f"_BASE_: {address}\n")
    with pytest.raises(UserError) as caught:
        load_cfg(str(path))
    assert str(caught.value) == f"{path}: its _BASE_ file {address} does not exist."
    assert not PathManager.exists(address)


def test_a_wrong_key_above_detectron2s_config_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"_BASE_: {DETECTRON2_CONFIGS}Base-RCNN-FPN.yaml\nMODEL: {{MASKON: True}}\n")
    with pytest.raises(UserError, match="no config key MODEL.MASKON; did you mean MODEL.MASK_ON"):
        load_cfg(str(path))


USE = """
import aff_seg
from aff_seg.config_files import config_folder
from aff_seg.setup_cfg import load_cfg
cfg = load_cfg(f"{config_folder()}/detectron2/mask_rcnn_aff_tiny_fpn_3x.yaml")
aff_seg.use_aff_backbone(cfg, "small_1_5th")
print(aff_seg.__file__, cfg.MODEL.AFF.EMBED_DIM)
"""


def test_an_installed_package_has_its_configs_inside(tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"
    for folder in ("aff_seg", "configs"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(REPO / folder, source / folder, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in"):
        shutil.copy(REPO / name, source)
    environment = {**os.environ, "AFF_SEG_BUILD": "none"}
    environment.pop("FORCE_CUDA", None)
    run = {"check": True, "capture_output": True, "text": True}
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=source, env=environment, **run)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    ours = {path.relative_to(REPO / "configs") for path in (REPO / "configs").rglob("*.yaml")}
    theirs = site / "aff_seg" / "configs"
    assert {path.relative_to(theirs) for path in theirs.rglob("*.yaml")} == ours
    environment["PYTHONPATH"] = str(site)
    done = subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, env=environment, **run)
    assert done.stdout.splitlines()[-1] == f"{site}/aff_seg/__init__.py [96, 192, 384, 768]"


def test_no_config_of_ours_holds_code():
    for path in (REPO / "configs").rglob("*.yaml"):
        assert yaml.safe_load(path.read_text())
