"""Checks of datasets: what is missing is named, with the command that makes it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image

from aff_seg import add_aff_config
from aff_seg.data import check_datasets
from aff_seg.data.shapes import write_dataset
from aff_seg.errors import UserError

REPO = Path(__file__).parents[2]
PREPARE = "make it with: python datasets/prepare_cityscapes.py --root"
TASKS = {
    "cityscapes_panoptic_seg": 19,
    "cityscapes_instance": 8,
    "cityscapes_sem_seg": 19,
}


def make_cfg(*names: str, num_classes: int):
    cfg = get_cfg()
    add_aff_config(cfg)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = num_classes
    cfg.DATASETS.TRAIN = names
    return cfg


def told(cfg, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        check_datasets(cfg, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn")
    write_dataset(layout="cityscapes", root=root, train=4, val=1, size=(32, 48), progress=False)
    return root


@pytest.fixture
def root(drawn, tmp_path):
    """A copy of a drawn Cityscapes that looks like the real one."""
    shutil.copytree(drawn, tmp_path / "data")
    (tmp_path / "data" / "cityscapes" / "shapes.json").unlink()
    return tmp_path / "data"


@pytest.fixture
def register():
    """Registers datasets for one test."""
    names = []

    def register(name, load, **metadata):
        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(**metadata)
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def cityscapes(register, root):
    """Registers the training split under ``root`` for a task, as Detectron2 does."""

    def register_task(task: str, top: Path | str = root):
        images = f"{top}/cityscapes/leftImg8bit/train"
        labels = f"{top}/cityscapes/gtFine/train"
        metadata = {"evaluator_type": task, "gt_dir": labels}
        metadata |= {"thing_classes": ["thing"] * 8, "stuff_classes": ["stuff"] * 19}
        if task == "cityscapes_panoptic_seg":
            panoptic = f"{top}/cityscapes/gtFine/cityscapes_panoptic_train"
            metadata |= {
                "image_root": images,
                "panoptic_root": panoptic,
                "panoptic_json": f"{panoptic}.json",
            }
        else:
            metadata["image_dir"] = images
        return register("test_" + task, list, **metadata)

    return register_task


def first(root: Path, pattern: str) -> Path:
    return sorted((root / "cityscapes").rglob(pattern))[0]


@pytest.mark.parametrize("task", TASKS)
def test_a_complete_cityscapes_passes(task, cityscapes):
    check_datasets(make_cfg(cityscapes(task), num_classes=TASKS[task]), splits=("TRAIN",))


@pytest.mark.parametrize("task", TASKS)
def test_a_root_that_is_not_there_is_named_with_the_command(task, cityscapes):
    name = cityscapes(task, "/nowhere")
    message = told(make_cfg(name, num_classes=TASKS[task]))
    assert "/nowhere/cityscapes/leftImg8bit/train is missing" in message
    assert "DETECTRON2_DATASETS" in message
    assert "python datasets/make_shapes.py --layout cityscapes --root /nowhere" in message


@pytest.mark.parametrize(
    ("task", "pattern", "command"),
    [
        (
            "cityscapes_panoptic_seg",
            "train/*/*_labelTrainIds.png",
            PREPARE,
        ),
        ("cityscapes_panoptic_seg", "train/*/*_instanceIds.png", "unpack Cityscapes"),
        (
            "cityscapes_panoptic_seg",
            "cityscapes_panoptic_train.json",
            PREPARE,
        ),
        (
            "cityscapes_panoptic_seg",
            "cityscapes_panoptic_train",
            PREPARE,
        ),
        (
            "cityscapes_panoptic_seg",
            "cityscapes_panoptic_train/*.png",
            PREPARE,
        ),
        ("cityscapes_panoptic_seg", "gtFine/train", "unpack Cityscapes"),
        ("cityscapes_instance", "train/*/*_polygons.json", "unpack Cityscapes"),
        (
            "cityscapes_sem_seg",
            "train/*/*_labelTrainIds.png",
            PREPARE,
        ),
    ],
)
def test_a_missing_part_is_named_with_the_command(task, pattern, command, cityscapes, root):
    lost = sorted((root / "cityscapes").glob("**/" + pattern))[-1]
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    message = told(make_cfg(cityscapes(task), num_classes=TASKS[task]))
    assert f"{lost} is missing" in message
    assert command in message


def test_half_a_shapes_dataset_is_to_be_drawn_anew(cityscapes, root):
    (root / "cityscapes" / "shapes.json").write_text("{}")
    first(root, "*_labelTrainIds.png").unlink()
    message = told(make_cfg(cityscapes("cityscapes_panoptic_seg"), num_classes=19))
    assert "draw it anew: python datasets/make_shapes.py" in message


def test_no_images_are_told(cityscapes, root):
    for image in (root / "cityscapes" / "leftImg8bit" / "train").glob("*/*"):
        image.unlink()
    assert "holds no images" in told(
        make_cfg(cityscapes("cityscapes_panoptic_seg"), num_classes=19)
    )


def test_an_image_that_the_panoptic_list_lacks_is_named(cityscapes, root):
    listing = root / "cityscapes" / "gtFine" / "cityscapes_panoptic_train.json"
    content = json.loads(listing.read_text())
    lost = content["annotations"].pop()["image_id"]
    listing.write_text(json.dumps(content))
    message = told(make_cfg(cityscapes("cityscapes_panoptic_seg"), num_classes=19))
    assert lost in message and "is not listed" in message


def test_a_listed_image_that_is_missing_is_named(cityscapes, root):
    image = first(root, "train/*/*_leftImg8bit.png")
    image.unlink()
    message = told(make_cfg(cityscapes("cityscapes_panoptic_seg"), num_classes=19))
    assert image.name.removesuffix("_leftImg8bit.png") in message


def test_a_damaged_panoptic_list_is_named(cityscapes, root):
    listing = root / "cityscapes" / "gtFine" / "cityscapes_panoptic_train.json"
    listing.write_text(listing.read_text()[:100])
    message = told(make_cfg(cityscapes("cityscapes_panoptic_seg"), num_classes=19))
    assert f"{listing} is damaged" in message


def test_a_stray_file_among_the_images_is_named(cityscapes, root):
    stray = first(root, "train/*/*_leftImg8bit.png").with_name(".DS_Store")
    stray.write_bytes(b"")
    message = told(make_cfg(cityscapes("cityscapes_panoptic_seg"), num_classes=19))
    assert str(stray) in message


def test_a_dot_in_the_path_is_named(cityscapes, root):
    dotted = root.rename(root.with_name("data.v2"))
    message = told(make_cfg(cityscapes("cityscapes_panoptic_seg", dotted), num_classes=19))
    assert "data.v2" in message and "without dots" in message


@pytest.mark.parametrize("task", TASKS)
def test_another_class_count_is_told(task, cityscapes):
    message = told(make_cfg(cityscapes(task), num_classes=133))
    assert f"has {TASKS[task]} classes" in message and "NUM_CLASSES is 133" in message


def test_class_counts_of_detectron2s_architectures(cityscapes):
    name = cityscapes("cityscapes_instance")
    for architecture, part in (("GeneralizedRCNN", "ROI_HEADS"), ("RetinaNet", "RETINANET")):
        cfg = make_cfg(name, num_classes=133)
        cfg.MODEL.META_ARCHITECTURE = architecture
        cfg.INPUT.DATASET_MAPPER_NAME = "detectron2"
        assert f"has 8 classes, but MODEL.{part}.NUM_CLASSES is 80; " in told(cfg)
        cfg.MODEL[part].NUM_CLASSES = 8
        check_datasets(cfg)


def test_an_unknown_name_gets_close_matches():
    message = told(make_cfg("cityscapes_panoptic_train", num_classes=19))
    assert "cityscapes_fine_panoptic_train" in message
    assert "did you mean" not in told(make_cfg("zzz", num_classes=19))
    assert "DATASETS.TRAIN is empty" in told(make_cfg(num_classes=19))


def test_only_the_given_splits_are_checked(cityscapes):
    cfg = make_cfg("zzz", num_classes=19)
    cfg.DATASETS.TEST = (cityscapes("cityscapes_panoptic_seg"),)
    check_datasets(cfg, splits=("TEST",))


# Datasets of the user


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.jpg"
    Image.new("RGB", (8, 8)).save(path)
    return str(path)


def test_records_of_a_registered_dataset_are_checked(register, picture):
    records = [{"file_name": picture}]
    cfg = make_cfg(register("test_mine", lambda: records), num_classes=3)
    check_datasets(cfg)
    records[0]["sem_seg_file_name"] = picture + ".png"
    assert f"{picture}.png (sem_seg_file_name of a record) is missing" in told(cfg)
    records.clear()
    assert "has no images" in told(cfg)


def test_a_reader_that_fails_is_told(register):
    def load():
        raise AssertionError("No annotations found in here.")

    cfg = make_cfg(register("test_mine", load), num_classes=3)
    assert "cannot be read (AssertionError: No annotations found in here.)" in told(cfg)


def test_coco_form_takes_its_classes_from_the_file(tmp_path, picture):
    listing = tmp_path / "instances.json"
    listing.write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "picture.jpg", "height": 8, "width": 8}],
                "annotations": [],
                "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
            }
        )
    )
    name = "test_pets"
    register_coco_instances(name, {}, str(listing), str(tmp_path))
    try:
        cfg = make_cfg(name, num_classes=2)
        assert "No image of test_pets shows an object to train on" in told(cfg)
        cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
        check_datasets(cfg)
        assert "has 2 classes" in told(make_cfg(name, num_classes=80))
        content = json.loads(listing.read_text())
        content["annotations"] = [{"id": 1, "image_id": 1, "category_id": 3, "segmentation": [1]}]
        listing.write_text(json.dumps(content))
        assert f"cannot be read from {listing} (TypeError: " in told(cfg)
        listing.unlink()
        assert f"{listing} is missing" in told(make_cfg(name, num_classes=2))
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_a_picture_without_a_label_image_is_named(register, tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for name in ("a", "b"):
        (tmp_path / "images" / f"{name}.jpg").write_bytes(b"")
    (tmp_path / "labels" / "a.png").write_bytes(b"")
    name = register(
        "test_pairs",
        lambda: [{"file_name": str(tmp_path / "images" / "a.jpg")}],
        evaluator_type="sem_seg",
        image_root=str(tmp_path / "images"),
        sem_seg_root=str(tmp_path / "labels"),
        stuff_classes=["x"],
    )
    cfg = make_cfg(name, num_classes=1)
    assert f"{tmp_path / 'images' / 'b.jpg'} has no label image" in told(cfg)
    (tmp_path / "labels" / "b.png").write_bytes(b"")
    check_datasets(cfg)


CHECK_BUILTIN = """
import sys
from detectron2.config import get_cfg
from aff_seg import add_aff_config
from aff_seg.data import check_datasets
from aff_seg.errors import UserError
cfg = get_cfg()
add_aff_config(cfg)
for name, count in zip(sys.argv[1::2], map(int, sys.argv[2::2])):
    cfg.DATASETS.TRAIN = (name,)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = count
    try:
        check_datasets(cfg)
        print(name, "passes")
    except UserError as error:
        print(name, error)
"""


def test_detectron2s_own_names_are_checked(drawn):
    names = {
        "cityscapes_fine_panoptic_val": 19,
        "cityscapes_fine_instance_seg_train": 8,
        "coco_2017_train": 80,
        "ade20k_sem_seg_val": 150,
    }
    done = subprocess.run(
        [sys.executable, "-c", CHECK_BUILTIN, *(str(x) for pair in names.items() for x in pair)],
        capture_output=True,
        text=True,
        cwd=REPO,
        env={**os.environ, "DETECTRON2_DATASETS": str(drawn)},
        check=True,
    )
    panoptic, instances, coco, ade = done.stdout.splitlines()
    assert panoptic.endswith("passes") and instances.endswith("passes")
    assert f"--layout coco --root {drawn}" in coco
    assert f"--layout ade20k --root {drawn}" in ade
