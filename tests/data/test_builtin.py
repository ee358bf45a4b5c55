"""Datasets that this project registers, and what it adds to Detectron2's."""

import importlib.util
import json
import sys
import types

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import cityscapes as detectron2_cityscapes
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES, COCO_CATEGORIES
from panopticapi.utils import id2rgb
from PIL import Image
from pycocotools import mask as mask_util

from aff_seg import add_aff_config
from aff_seg.data import builtin, check_datasets
from aff_seg.data.metadata import class_attribute
from aff_seg.data.shapes import write_dataset
from aff_seg.errors import UserError
from aff_seg.evaluation import check_evaluators

SPLITS = ("train", "val")
SIZE = (20, 30)


@pytest.mark.parametrize("split", SPLITS)
def test_ade20k_panoptic_has_100_things_among_150_classes(split):
    metadata = MetadataCatalog.get(f"ade20k_panoptic_{split}")
    assert metadata.evaluator_type == "ade20k_panoptic_seg"
    assert (metadata.ignore_label, metadata.label_divisor) == (255, 1000)
    assert metadata.stuff_classes == ADE20K_SEM_SEG_CATEGORIES
    assert metadata.stuff_dataset_id_to_contiguous_id == {i: i for i in range(150)}
    things = list(metadata.thing_dataset_id_to_contiguous_id.values())
    assert things == sorted(things) and len(things) == len(metadata.thing_classes) == 100
    assert [metadata.stuff_classes[i] for i in things] == metadata.thing_classes
    for name, isthing in (("car", True), ("bed", True), ("sky", False), ("wall", False)):
        assert (ADE20K_SEM_SEG_CATEGORIES.index(name) in things) == isthing
    assert [metadata.stuff_colors[i] for i in things] == metadata.thing_colors
    # Every class has a colour of its own.
    assert len({tuple(c) for c in metadata.stuff_colors}) == 150
    assert metadata.stuff_colors[0] == [120, 120, 120]
    assert metadata.stuff_colors[149] == [92, 0, 255]


@pytest.mark.parametrize("split", SPLITS)
def test_ade20k_instance_counts_the_things(split):
    metadata = MetadataCatalog.get(f"ade20k_instance_{split}")
    panoptic = MetadataCatalog.get(f"ade20k_panoptic_{split}")
    assert metadata.evaluator_type == "coco"
    ids = panoptic.thing_dataset_id_to_contiguous_id.values()
    assert metadata.thing_dataset_id_to_contiguous_id == {i: n for n, i in enumerate(ids)}
    assert len(metadata.thing_classes) == len(metadata.thing_colors) == 100
    assert metadata.thing_classes[:3] == ["bed", "windowpane", "cabinet"]


@pytest.mark.parametrize("split", SPLITS)
def test_coco_panoptic_with_label_images(split):
    metadata = MetadataCatalog.get(f"coco_2017_{split}_panoptic_with_sem_seg")
    plain = MetadataCatalog.get(f"coco_2017_{split}_panoptic")
    assert metadata.evaluator_type == "coco_panoptic_seg"
    assert metadata.panoptic_json == plain.panoptic_json
    assert metadata.sem_seg_root.endswith(f"coco/panoptic_semseg_{split}2017")
    assert metadata.thing_classes == MetadataCatalog.get(f"coco_2017_{split}").thing_classes
    assert metadata.thing_dataset_id_to_contiguous_id == plain.thing_dataset_id_to_contiguous_id
    assert metadata.stuff_dataset_id_to_contiguous_id == {
        c["id"]: i for i, c in enumerate(COCO_CATEGORIES)
    }
    assert len(metadata.stuff_classes) == len(metadata.stuff_colors) == 133


def test_detectron2s_datasets_have_colours():
    assert len(MetadataCatalog.get("ade20k_sem_seg_val").stuff_colors) == 150
    instance = MetadataCatalog.get("cityscapes_fine_instance_seg_val")
    assert class_attribute(instance, "classes", 2, True) == "car"
    assert class_attribute(instance, "colors", 2, True) == (0, 0, 142)
    semantic = MetadataCatalog.get("cityscapes_fine_sem_seg_val")
    assert class_attribute(semantic, "colors", 13, False) == (0, 0, 142)


def test_names_follow_the_count_of_the_model():
    ade = MetadataCatalog.get("ade20k_panoptic_val")
    assert class_attribute(ade, "classes", 20, True) == "car"
    assert class_attribute(ade, "classes", 2, False) == "sky"
    instance = MetadataCatalog.get("ade20k_instance_val")
    assert class_attribute(instance, "classes", 8, True) == "car"
    assert class_attribute(instance, "classes", 100, True) is None
    coco = MetadataCatalog.get("coco_2017_val_panoptic")
    assert class_attribute(coco, "classes", 2, True) == "car"
    separated = MetadataCatalog.get("coco_2017_val_panoptic_separated")
    assert class_attribute(separated, "classes", 79, True) == "toothbrush"


# Records


@pytest.fixture
def ade20k(tmp_path, monkeypatch):
    """An ADE20K of one image in each split: a car (20) and another before the sky (2)."""
    top = tmp_path / "ADEChallengeData2016"
    for split, folder in (("train", "training"), ("val", "validation")):
        stem = f"ADE_{split}_00000001"
        classes = np.full(SIZE, 2, dtype=np.uint8)
        ids = np.full(SIZE, 700, dtype=np.uint32)
        segments = [{"id": 700, "category_id": 2, "iscrowd": 0}]
        annotations = []
        for number, left in ((5, 2), (6, 15)):
            mask = np.zeros(SIZE, dtype=np.uint8)
            mask[3:12, left : left + 9] = 1
            classes[mask > 0], ids[mask > 0] = 20, number
            segments.append({"id": number, "category_id": 20, "iscrowd": 0})
            rle = mask_util.encode(np.asfortranarray(mask))
            annotations.append(
                {
                    "id": number,
                    "image_id": stem,
                    "category_id": 20,
                    "iscrowd": 0,
                    "area": int(mask.sum()),
                    "bbox": [left, 3, 9, 9],
                    "segmentation": {**rle, "counts": rle["counts"].decode()},
                }
            )
        for kind, name, picture in (
            ("images/" + folder, f"{stem}.jpg", Image.fromarray(id2rgb(ids * 999))),
            ("annotations_detectron2/" + folder, f"{stem}.png", Image.fromarray(classes)),
            (f"ade20k_panoptic_{split}", f"{stem}.png", Image.fromarray(id2rgb(ids))),
        ):
            (top / kind).mkdir(parents=True, exist_ok=True)
            picture.save(top / kind / name)
        image = {"id": stem, "file_name": f"{stem}.jpg", "height": SIZE[0], "width": SIZE[1]}
        panoptic = {"image_id": stem, "file_name": f"{stem}.png", "segments_info": segments}
        for name, found in (("instance", annotations), ("panoptic", [panoptic])):
            categories = [{"id": i, "name": str(i), "isthing": int(i == 20)} for i in range(150)]
            content = {"images": [image], "annotations": found, "categories": categories}
            (top / f"ade20k_{name}_{split}.json").write_text(json.dumps(content))
    names = [name for name in DatasetCatalog.list() if name.startswith(("ade20k", "coco_2017"))]
    fresh = types.SimpleNamespace(root=tmp_path, top=top)
    saved = {name: (DatasetCatalog.pop(name), MetadataCatalog.pop(name)) for name in names}
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    builtin.register_builtin(str(tmp_path))
    yield fresh
    for name in DatasetCatalog.list():
        if name.startswith(("ade20k", "coco_2017")):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    for name, (load, metadata) in saved.items():
        DatasetCatalog[name], MetadataCatalog[name] = load, metadata


def ade_cfg(task, classes):
    cfg = get_cfg()
    add_aff_config(cfg)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = classes
    cfg.DATASETS.TRAIN = (f"ade20k_{task}_train",)
    cfg.DATASETS.TEST = (f"ade20k_{task}_val",)
    cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON = task == "panoptic"
    cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = task == "panoptic"
    cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON = True
    return cfg


def test_ade20k_records(ade20k):
    (record,) = DatasetCatalog.get("ade20k_panoptic_val")
    assert record["image_id"] == "ADE_val_00000001"
    assert record["file_name"] == str(ade20k.top / "images/validation/ADE_val_00000001.jpg")
    assert record["pan_seg_file_name"].endswith("ade20k_panoptic_val/ADE_val_00000001.png")
    assert record["sem_seg_file_name"].endswith(
        "annotations_detectron2/validation/ADE_val_00000001.png"
    )
    assert [(s["category_id"], s["isthing"]) for s in record["segments_info"]] == [
        (2, False),
        (20, True),
        (20, True),
    ]
    (record,) = DatasetCatalog.get("ade20k_instance_train")
    # The car is the ninth of the things.
    assert [a["category_id"] for a in record["annotations"]] == [8, 8]
    for task, classes in (("panoptic", 150), ("instance", 100)):
        check_datasets(ade_cfg(task, classes))
        check_evaluators(ade_cfg(task, classes))


@pytest.mark.parametrize(
    ("task", "lost"),
    [
        ("panoptic", "ade20k_panoptic_train.json"),
        ("panoptic", "ade20k_panoptic_train/ADE_train_00000001.png"),
        ("panoptic", "annotations_detectron2/validation/ADE_val_00000001.png"),
        ("panoptic", "ade20k_instance_val.json"),
        ("instance", "ade20k_instance_val.json"),
    ],
)
def test_a_missing_file_of_ade20k_is_named_with_the_command(ade20k, task, lost):
    (ade20k.top / lost).unlink()
    cfg = ade_cfg(task, {"panoptic": 150, "instance": 100}[task])
    with pytest.raises(UserError) as caught:
        check_datasets(cfg)
        check_evaluators(cfg)
    assert f"{ade20k.top / lost}" in str(caught.value)
    command = f"python datasets/prepare_ade20k.py --root {ade20k.root}"
    assert f"make it with: {command}." in str(caught.value)


# Cityscapes with the head of Detectron2's repository


def test_cityscapes_instances_load_where_detectron2_imports_an_internal_package(
    tmp_path, monkeypatch
):
    write_dataset(layout="cityscapes", root=tmp_path, train=2, val=1, size=(32, 48), progress=False)
    top = tmp_path / "cityscapes"
    folders = [str(top / "leftImg8bit" / "train"), str(top / "gtFine" / "train")]
    expected = detectron2_cityscapes.load_cityscapes_instances(*folders)
    with open(detectron2_cityscapes.__file__, encoding="utf-8") as file:
        source = file.read()
    internal = source.replace(
        "from cityscapesscripts.", "from deeplearning.projects.cityscapesApi.cityscapesscripts."
    )
    assert internal != source
    assert importlib.util.find_spec("deeplearning") is None
    name = detectron2_cityscapes.__name__
    head = types.ModuleType(name)
    head.__file__, head.__package__ = detectron2_cityscapes.__file__, "detectron2.data.datasets"
    # The loader's processes look its function up by name.
    monkeypatch.setitem(sys.modules, name, head)
    exec(compile(internal, head.__file__, "exec"), vars(head))
    assert head.load_cityscapes_instances(*folders) == expected
    monkeypatch.delitem(sys.modules, builtin._INTERNAL_LABELS)
    with pytest.raises(ModuleNotFoundError):
        head.load_cityscapes_instances(*folders)
