"""Preparing the published datasets: drawn ones, as they are downloaded, against their drawing."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
from detectron2.data.catalog import MetadataCatalog
from detectron2.data.datasets.builtin_meta import (
    ADE20K_SEM_SEG_CATEGORIES,
    CITYSCAPES_CATEGORIES,
    COCO_CATEGORIES,
)
from detectron2.data.datasets.coco import load_coco_json
from panopticapi.utils import rgb2id
from PIL import Image
from pycocotools import mask as mask_util

from aff_seg.data.ade20k import INSTANCE_NAMES, THINGS
from aff_seg.data.preparation.ade20k import ADE20K
from aff_seg.data.preparation.cityscapes import CITYSCAPES
from aff_seg.data.preparation.coco import COCO
from aff_seg.data.preparation.command import main
from aff_seg.data.shapes import write_dataset
from aff_seg.data.shapes.scene import Scene, draw_scene
from aff_seg.errors import UserError

REPO = Path(__file__).parents[2]
DATASETS = {"ade20k": ADE20K, "coco": COCO, "cityscapes": CITYSCAPES}
SIZE = (72, 120)
COUNTS = {"train": 3, "val": 2}
SEED = 5
# Names of the kinds of shapes in Detectron2's lists; clutter and wreck are in none.
ADE20K_NAMES = {
    "disk": "person",
    "triangle": "flag",
    "square": "car",
    "ell": "truck",
    "cross": "bus",
    "bar": "plane",
    "star": "minibike, motorbike",
    "crescent": "bicycle",
    "clouds": "sky",
    "windows": "skyscraper",
    "leaves": "tree",
    "asphalt": "road, route",
    "grass": "grass",
    "planks": "wall",
}
COCO_NAMES = {
    "disk": "person",
    "triangle": "kite",
    "square": "car",
    "ell": "truck",
    "cross": "bus",
    "bar": "toothbrush",
    "star": "clock",
    "crescent": "banana",
    "clouds": "sky-other-merged",
    "windows": "building-other-merged",
    "leaves": "tree-merged",
    "asphalt": "road",
    "grass": "grass-merged",
    "planks": "wall-other-merged",
}
CITYSCAPES_NAMES = {
    "disk": "person",
    "triangle": "rider",
    "square": "car",
    "ell": "truck",
    "cross": "bus",
    "bar": "train",
    "star": "motorcycle",
    "crescent": "bicycle",
    "clouds": "sky",
    "windows": "building",
    "leaves": "vegetation",
    "asphalt": "road",
    "grass": "terrain",
    "planks": "wall",
}
IMAGES = [(split, index) for split in COUNTS for index in range(COUNTS[split])]


def scene(split: str, index: int) -> Scene:
    """The drawing of an image, anew."""
    rng = np.random.default_rng([SEED, list(COUNTS).index(split), index])
    return draw_scene(rng, SIZE, {0: "empty", 1: "full"}.get(index, "usual"))


def prepare(layout: str, root: Path, *options: object) -> int:
    arguments = ["--root", root, "--workers", 1, *options]
    return main(DATASETS[layout], "", [str(argument) for argument in arguments])


def draw(root: Path, *layouts: str) -> None:
    for layout in layouts:
        write_dataset(
            layout=layout, root=root, size=SIZE, seed=SEED, raw=True, progress=False, **COUNTS
        )


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """All three datasets, prepared by two processes."""
    root = tmp_path_factory.mktemp("prepared")
    draw(root, *DATASETS)
    for layout in DATASETS:
        assert prepare(layout, root, "--workers", 2) == 0
    return root


@pytest.fixture
def copy(root, tmp_path) -> Path:
    """One's own copy of the prepared datasets."""
    return Path(shutil.copytree(root, tmp_path / "copy"))


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def box(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    return [int(columns[0]), int(rows[0]), int(width), int(height)]


# What is drawn


@pytest.mark.parametrize("size", [(32, 32), (72, 120)])
def test_drawings_have_the_rare_cases(size):
    for seed in range(20):
        empty, full = (
            draw_scene(np.random.default_rng(seed), size, case) for case in ("empty", "full")
        )
        assert not any(region.kind.is_thing for region in empty.regions)
        segments = full.segments()
        assert {"clutter", "wreck"} <= {s.kind.name for s in segments}
        assert any(s.crowd for s in segments)
        things = [s.mask for s in segments if s.kind.is_thing and not s.crowd]
        assert any(mask[0].any() and mask[:, 0].any() for mask in things)


def test_raw_datasets_have_only_what_is_published(tmp_path):
    draw(tmp_path, *DATASETS)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    for made in ("detectron2", "ade20k_", "semseg", "stuff", "TrainIds", "cityscapes_panoptic"):
        assert not [name for name in names if made in name]
    instances = json.loads((tmp_path / "coco/annotations/instances_train2017.json").read_text())
    assert len(instances["images"]) == 3
    assert 1 not in {a["image_id"] for a in instances["annotations"]}
    kinds = {(type(a["segmentation"]), a["iscrowd"]) for a in instances["annotations"]}
    assert kinds == {(list, 0), (dict, 1)}
    assert max(a["category_id"] for a in instances["annotations"]) > 80
    ids = read(next(tmp_path.rglob("bochum_000001_*_instanceIds.png")))
    # Caravans, which are not evaluated, and a crowd.
    assert 29000 in ids and {24, 25, 26, 27, 28, 31, 32, 33} & set(np.unique(ids).tolist())


def test_a_prepared_raw_dataset_is_still_the_one_drawn(copy):
    for layout in DATASETS:
        request = {"size": SIZE, "seed": SEED, "raw": True, "progress": False, **COUNTS}
        assert not write_dataset(layout=layout, root=copy, **request)
    next((copy / "coco" / "panoptic_val2017").glob("*.png")).unlink()
    with pytest.raises(UserError, match="files where"):
        write_dataset(layout="coco", root=copy, **request)


# What is made, against the drawing


@pytest.mark.parametrize(("split", "index"), IMAGES)
def test_ade20k_semantic(split, index, root):
    drawn = scene(split, index)
    path = ade20k_file(root, "annotations_detectron2", split, index)
    np.testing.assert_array_equal(read(path), ade20k_classes(drawn))


def ade20k_classes(drawn: Scene) -> np.ndarray:
    """0 to 149, or 255."""
    names = [ADE20K_NAMES.get(region.kind.name) for region in drawn.regions]
    table = [ADE20K_SEM_SEG_CATEGORIES.index(name) if name else 255 for name in names]
    return np.array(table)[drawn.labels]


def ade20k_file(root: Path, kind: str, split: str, index: int) -> Path:
    folder = {"train": "training", "val": "validation"}[split]
    return root / "ADEChallengeData2016" / kind / folder / f"ADE_{split}_{index + 1:08d}.png"


def ade20k_listing(root: Path, task: str, split: str) -> dict:
    path = root / "ADEChallengeData2016" / f"ade20k_{task}_{split}.json"
    return json.loads(path.read_text())


def ade20k_things(drawn: Scene) -> list[tuple[int, np.ndarray]]:
    """Class and mask of each thing; members of crowds are things of their own."""
    things = []
    for index, region in enumerate(drawn.regions):
        mask = drawn.labels == index
        if region.kind.is_thing and mask.any():
            name = ADE20K_NAMES[region.kind.name]
            things.append((ADE20K_SEM_SEG_CATEGORIES.index(name), mask))
    return things


@pytest.mark.parametrize(("split", "index"), IMAGES)
def test_ade20k_instances(split, index, root):
    listing = ade20k_listing(root, "instance", split)
    assert [image["id"] for image in listing["images"]] == [
        f"ADE_{split}_{i + 1:08d}" for i in range(COUNTS[split])
    ]
    image = listing["images"][index]
    assert image == {
        "id": image["id"],
        "file_name": f"{image['id']}.jpg",
        "height": SIZE[0],
        "width": SIZE[1],
    }
    numbers = [annotation["id"] for annotation in listing["annotations"]]
    assert numbers == list(range(1, len(numbers) + 1))
    found = {}
    for annotation in listing["annotations"]:
        if annotation["image_id"] == image["id"]:
            mask = mask_util.decode(annotation["segmentation"]).astype(bool)
            assert annotation["area"] == mask.sum() and annotation["bbox"] == box(mask)
            assert annotation["iscrowd"] == 0
            found[mask.tobytes()] = annotation["category_id"]
    assert found == {mask.tobytes(): i for i, mask in ade20k_things(scene(split, index))}
    assert bool(found) == (index > 0)


@pytest.mark.parametrize(("split", "index"), IMAGES)
def test_ade20k_panoptic(split, index, root):
    listing = ade20k_listing(root, "panoptic", split)
    annotation = listing["annotations"][index]
    name = f"ADE_{split}_{index + 1:08d}"
    assert listing["images"][index]["id"] == annotation["image_id"] == name
    assert listing["images"][index]["file_name"] == f"{name}.jpg"
    assert annotation["file_name"] == f"{name}.png"
    folder = root / "ADEChallengeData2016" / f"ade20k_panoptic_{split}"
    ids = rgb2id(read(folder / annotation["file_name"]))
    found = {}
    for segment in annotation["segments_info"]:
        mask = ids == segment["id"]
        assert segment["area"] == mask.sum() and segment["bbox"] == box(mask)
        assert segment["iscrowd"] == 0 and segment["id"] > 0
        found[mask.tobytes()] = segment["category_id"]
    drawn = scene(split, index)
    expected = {mask.tobytes(): i for i, mask in ade20k_things(drawn)}
    classes = ade20k_classes(drawn)
    for name in ("sky", "skyscraper", "tree", "road, route", "grass", "wall"):
        category = ADE20K_SEM_SEG_CATEGORIES.index(name)
        if (classes == category).any():
            expected[(classes == category).tobytes()] = category
    assert found == expected
    assert set(np.unique(ids)) - {0} == {s["id"] for s in annotation["segments_info"]}
    np.testing.assert_array_equal(ids == 0, classes == 255)


def test_ade20k_categories(root):
    things = ade20k_listing(root, "instance", "val")["categories"]
    panoptic = ade20k_listing(root, "panoptic", "val")["categories"]
    assert [c["id"] for c in panoptic] == list(range(150))
    assert [c["name"] for c in panoptic] == ADE20K_SEM_SEG_CATEGORIES
    assert [c["id"] for c in things] == [c["id"] for c in panoptic if c["isthing"]]
    names = {c["id"]: c["name"] for c in things}
    assert len(names) == 100
    assert (names[12], names[8], names[90], names[149]) == (
        "person",
        "windowpane",
        "airplane",
        "flag",
    )
    colours = [tuple(c["color"]) for c in panoptic]
    assert len(set(colours)) == 150
    assert (colours[6], colours[48]) == ((0x8C, 0x8C, 0x8C), (0x8C, 0x8C, 0xC8))


def test_detectron2_reads_the_instances_of_ade20k(root):
    name = "ade20k_instances_of_a_test"
    top = root / "ADEChallengeData2016"
    path, pictures = top / "ade20k_instance_train.json", top / "images" / "training"
    try:
        records = load_coco_json(str(path), str(pictures), name)
        metadata = MetadataCatalog.get(name)
        assert metadata.thing_classes == INSTANCE_NAMES
        places = {category: place for place, category in enumerate(THINGS)}
        assert metadata.thing_dataset_id_to_contiguous_id == places
    finally:
        MetadataCatalog.pop(name)
    assert [len(record["annotations"]) > 0 for record in records] == [False, True, True]
    assert all(Path(record["file_name"]).is_file() for record in records)
    person = places[ADE20K_SEM_SEG_CATEGORIES.index("person")]
    drawn = sum(i == 12 for i, _ in ade20k_things(scene("train", 1)))
    assert sum(a["category_id"] == person for a in records[1]["annotations"]) == drawn > 0


@pytest.mark.parametrize(("split", "index"), IMAGES)
def test_coco_semantic(split, index, root):
    drawn = scene(split, index)
    places = {category["name"]: i for i, category in enumerate(COCO_CATEGORIES)}
    names = [COCO_NAMES.get(region.kind.name) for region in drawn.regions]
    table = np.array([places[name] if name else 255 for name in names])
    name = f"{ {'train': 1, 'val': 1_000_001}[split] + index:012d}.png"
    labels = read(root / "coco" / f"panoptic_semseg_{split}2017" / name)
    np.testing.assert_array_equal(labels, table[drawn.labels])
    # As Detectron2 counts: 0 for all things.
    metadata = MetadataCatalog.get("coco_2017_val_panoptic_stuffonly")
    class_of = metadata.stuff_dataset_id_to_contiguous_id
    ids = {category["name"]: category["id"] for category in COCO_CATEGORIES}
    table = np.array([class_of.get(ids[name], 0) if name else 255 for name in names])
    labels = read(root / "coco" / f"panoptic_stuff_{split}2017" / name)
    np.testing.assert_array_equal(labels, table[drawn.labels])


def cityscapes_stem(split: str, index: int) -> str:
    cities = {"train": ("aachen", "bochum", "bremen"), "val": ("frankfurt", "lindau")}
    return f"{cities[split][index]}/{cities[split][index]}_{index:06d}_000019"


@pytest.mark.parametrize(("split", "index"), IMAGES)
def test_cityscapes_semantic(split, index, root):
    drawn = scene(split, index)
    train_ids = {category["name"]: category["trainId"] for category in CITYSCAPES_CATEGORIES}
    names = [CITYSCAPES_NAMES.get(region.kind.name) for region in drawn.regions]
    table = np.array([train_ids[name] if name else 255 for name in names])
    stem = cityscapes_stem(split, index)
    labels = read(root / "cityscapes" / "gtFine" / split / f"{stem}_gtFine_labelTrainIds.png")
    np.testing.assert_array_equal(labels, table[drawn.labels])


@pytest.mark.parametrize(("split", "index"), IMAGES)
def test_cityscapes_panoptic(split, index, root):
    fine = root / "cityscapes" / "gtFine"
    listing = json.loads((fine / f"cityscapes_panoptic_{split}.json").read_text())
    stem = cityscapes_stem(split, index).partition("/")[2]
    annotation = listing["annotations"][index]
    assert annotation["image_id"] == stem
    ids = rgb2id(read(fine / f"cityscapes_panoptic_{split}" / annotation["file_name"]))
    found = {}
    for segment in annotation["segments_info"]:
        mask = ids == segment["id"]
        assert segment["area"] == mask.sum() and segment["bbox"] == box(mask)
        found[mask.tobytes()] = (segment["category_id"], segment["iscrowd"])
    label_ids = {category["name"]: category["id"] for category in CITYSCAPES_CATEGORIES}
    drawn = scene(split, index)
    assert found == {
        segment.mask.tobytes(): (label_ids[CITYSCAPES_NAMES[segment.kind.name]], segment.crowd)
        for segment in drawn.segments()
        if segment.kind.name in CITYSCAPES_NAMES
    }


def test_cityscapes_panoptic_is_that_of_its_own_tool(root, tmp_path, capsys):
    fine = root / "cityscapes" / "gtFine"
    convert2panoptic(str(fine), str(tmp_path), setNames=["train", "val"])
    for path in sorted(tmp_path.rglob("*.*")):
        ours = fine / path.relative_to(tmp_path)
        if path.suffix == ".json":
            assert json.loads(ours.read_text()) == json.loads(path.read_text())
        else:
            assert ours.read_bytes() == path.read_bytes()
    assert len(list(tmp_path.rglob("*.png"))) == 5


# Again, in part, and with faults


def state(folder: Path) -> dict[Path, tuple[int, bytes]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize("layout", DATASETS)
def test_a_second_run_does_nothing(layout, root, capsys):
    before = state(root)
    assert prepare(layout, root) == 0
    assert prepare(layout, root, "--check") == 0
    assert state(root) == before
    told = capsys.readouterr().out
    assert "3 done before" in told and "in order" in told


def test_a_file_that_was_lost_is_made_again(root, copy):
    lost = (
        "ADEChallengeData2016/annotations_detectron2/training/ADE_train_00000002.png",
        "ADEChallengeData2016/ade20k_panoptic_train/ADE_train_00000002.png",
        "ADEChallengeData2016/ade20k_panoptic_val.json",
        "ADEChallengeData2016/ade20k_instance_val.json",
        "coco/panoptic_semseg_val2017/000001000001.png",
        "cityscapes/gtFine/cityscapes_panoptic_train/aachen_000000_000019_gtFine_panoptic.png",
        "cityscapes/gtFine/train/aachen/aachen_000000_000019_gtFine_labelTrainIds.png",
    )
    before = state(copy)
    for name in lost:
        (copy / name).unlink()
    for layout in DATASETS:
        assert prepare(layout, copy) == 0
    after = state(copy)
    assert {path: content for path, (_, content) in after.items()} == {
        path: content for path, (_, content) in before.items()
    }
    changed = {str(p.relative_to(copy)) for p, (time, _) in after.items() if before[p][0] != time}
    # The listing of a panoptic image that is made again is written again.
    assert set(lost) <= changed and "coco/panoptic_semseg_val2017/000001000002.png" not in changed


def test_tasks_and_splits_can_be_chosen(tmp_path, capsys):
    draw(tmp_path, *DATASETS)
    folder = tmp_path / "ADEChallengeData2016"
    shutil.rmtree(folder / "annotations_instance")
    assert prepare("ade20k", tmp_path, "--tasks", "semantic", "--splits", "val") == 0
    assert [path.name for path in (folder / "annotations_detectron2").iterdir()] == ["validation"]
    assert not list(folder.glob("ade20k_*"))
    assert prepare("ade20k", tmp_path, "--tasks", "semantic", "--splits", "val", "--check") == 0
    assert prepare("ade20k", tmp_path) == 1
    missing = folder / "annotations_instance" / "training"
    assert f"{missing} is missing; unpack ADE20K" in capsys.readouterr().err
    assert len(list((folder / "annotations_detectron2").rglob("*.png"))) == 5
    assert prepare("coco", tmp_path, "--tasks", "instance") == 0
    assert "Nothing is to be made" in capsys.readouterr().out
    assert prepare("cityscapes", tmp_path, "--tasks", "semantic") == 0
    assert not list((tmp_path / "cityscapes" / "gtFine").glob("cityscapes_panoptic*"))


BAD = {
    "ade20k": "ADEChallengeData2016/annotations_instance/training/ADE_train_00000002.png",
    "coco": "coco/panoptic_train2017/000000000002.png",
    "cityscapes": "cityscapes/gtFine/train/bochum/bochum_000001_000019_gtFine_instanceIds.png",
}


@pytest.mark.parametrize("layout", DATASETS)
@pytest.mark.parametrize("workers", [1, 2])
def test_one_bad_file_is_named_and_the_rest_goes_on(layout, workers, root, tmp_path, capsys):
    draw(tmp_path, layout)
    bad = tmp_path / BAD[layout]
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) // 2])
    assert prepare(layout, tmp_path, "--workers", workers) == 1
    told = capsys.readouterr()
    assert f"{bad} cannot be read as an image" in told.err
    top = DATASETS[layout].folder
    here, there = ({p.relative_to(r) for p in (r / top).rglob("*")} for r in (tmp_path, root))
    absent = {str(path) for path in there - here}
    assert (
        absent
        == {
            "ade20k": {
                "ADEChallengeData2016/ade20k_instance_train.json",
                "ADEChallengeData2016/ade20k_panoptic_train.json",
                "ADEChallengeData2016/ade20k_panoptic_train/ADE_train_00000002.png",
            },
            "coco": {
                "coco/panoptic_semseg_train2017/000000000002.png",
                "coco/panoptic_stuff_train2017/000000000002.png",
            },
            "cityscapes": {
                "cityscapes/gtFine/cityscapes_panoptic_train.json",
                "cityscapes/gtFine/cityscapes_panoptic_train/"
                "bochum_000001_000019_gtFine_panoptic.png",
            },
        }[layout]
    )
    bad.write_bytes(whole)
    assert prepare(layout, tmp_path) == 0
    for path in here | there:
        if (root / path).is_file():
            assert (tmp_path / path).read_bytes() == (root / path).read_bytes()
    assert not list((tmp_path / top).rglob(".*"))


def run_script(name: str, *arguments: object, monkeypatch) -> int:
    script = REPO / "datasets" / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    return ended.value.code


def test_scripts_draw_prepare_and_check(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for layout, dataset in DATASETS.items():
        name = f"prepare_{layout}"
        assert run_script(name, monkeypatch=monkeypatch) == 1
        missing = tmp_path / dataset.folder
        assert f"{name}.py: error: {missing} is missing; name" in capsys.readouterr().err
        numbers = ("--train", 1, "--val", 1, "--size", 32, 48)
        options = ("--layout", layout, "--raw", "--root", tmp_path, *numbers)
        assert run_script("make_shapes", *options, monkeypatch=monkeypatch) == 0
        assert run_script(name, "--check", monkeypatch=monkeypatch) == 1
        assert run_script(name, monkeypatch=monkeypatch) == 0
        assert run_script(name, "--check", monkeypatch=monkeypatch) == 0
        assert "is in order: 1 train pictures" in capsys.readouterr().out
