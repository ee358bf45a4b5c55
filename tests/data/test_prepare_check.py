"""``--check`` of the prepare scripts: every fault that is planted is found, with its file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aff_seg.data.preparation.ade20k import ADE20K
from aff_seg.data.preparation.cityscapes import CITYSCAPES
from aff_seg.data.preparation.coco import COCO
from aff_seg.data.preparation.command import main
from aff_seg.data.shapes import write_dataset
from aff_seg.errors import UserError

DATASETS = {"ade20k": ADE20K, "coco": COCO, "cityscapes": CITYSCAPES}
Fault = Callable[[Path], None]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    for layout in DATASETS:
        request = {"train": 2, "val": 2, "size": (48, 64), "seed": 3, "progress": False}
        write_dataset(layout=layout, root=root, raw=True, **request)
        assert main(DATASETS[layout], "", ["--root", str(root), "--workers", "1"]) == 0
    return root


@pytest.fixture
def root(prepared, tmp_path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "copy"))


def check(layout: str, root: Path, *options: str) -> int:
    return main(DATASETS[layout], "", ["--root", str(root), "--workers", "1", "--check", *options])


def delete(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def shrink(path: Path) -> None:
    """Take the right column off an image."""
    Image.fromarray(np.asarray(Image.open(path))[:, :-1]).save(path)


def paint(*colour: int) -> Fault:
    """Give the upper left pixel another value."""

    def change(path: Path) -> None:
        pixels = np.array(Image.open(path))
        pixels[0, 0] = colour if pixels.ndim == 3 else colour[0]
        Image.fromarray(pixels).save(path)

    return change


def duplicate(name: str) -> Fault:
    """Put a copy of a file beside it."""
    return lambda path: shutil.copy(path, path.with_name(name))


def edit(change: Callable[[dict], None]) -> Fault:
    def apply(path: Path) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return apply


def segments(content: dict) -> list[dict]:
    return content["annotations"][1]["segments_info"]


ADE = "ADEChallengeData2016/"
FINE = "cityscapes/gtFine/"
BOCHUM = "train/bochum/bochum_000001_000019_"
CASES = {
    # A file, what happens to it, and what is told, with {} for the file.
    "ade20k": [
        (ADE + "images/training/ADE_train_00000002.jpg", cut, "{} cannot be read as an image"),
        (
            ADE + "images/validation/ADE_val_00000001.jpg",
            delete,
            "annotations/validation/ADE_val_00000001.png has no picture",
        ),
        (ADE + "annotations/training/ADE_train_00000001.png", delete, "{} is missing"),
        (
            ADE + "annotations/training/ADE_train_00000001.png",
            paint(151),
            "{} has the label 151; labels of ADE20K are 0 to 150",
        ),
        (ADE + "annotations/training/ADE_train_00000001.png", paint(9), "less one"),
        (
            ADE + "annotations/training/ADE_train_00000001.png",
            shrink,
            "{} is 63 x 48 pixels, but its picture ADE_train_00000001.jpg is 64 x 48",
        ),
        (ADE + "annotations_instance/training/ADE_train_00000002.png", delete, "{} is missing"),
        (
            ADE + "annotations_instance/training/ADE_train_00000002.png",
            paint(101, 1, 0),
            "{} gives a thing the class 101 (red)",
        ),
        (
            ADE + "annotations_instance/training/ADE_train_00000002.png",
            duplicate("ADE_train_00000009.png"),
            "ADE_train_00000009.png has no picture",
        ),
        (ADE + "annotations_detectron2/validation/ADE_val_00000002.png", delete, "{} is missing"),
        (
            ADE + "annotations_detectron2/validation/ADE_val_00000002.png",
            paint(150),
            "{} has the label 150; labels are 0 to 149, or 255",
        ),
        (ADE + "annotations_detectron2/validation/ADE_val_00000002.png", shrink, "{} is 63 x 48"),
        (ADE + "annotations_detectron2/validation/ADE_val_00000002.png", paint(77), "{} differs"),
        (ADE + "ade20k_instance_train.json", delete, "{} is missing"),
        (ADE + "ade20k_instance_train.json", cut, "{} is damaged or no JSON file"),
        (
            ADE + "ade20k_instance_train.json",
            edit(lambda c: c["annotations"][0].update(category_id=6)),
            "{} gives a thing of image ADE_train_00000002 the category 6",
        ),
        (
            ADE + "ade20k_instance_train.json",
            edit(lambda c: c["annotations"][0].update(category_id=127)),
            "{} has other things in image ADE_train_00000002 than",
        ),
        (
            ADE + "ade20k_instance_train.json",
            edit(lambda c: c["annotations"].append(c["annotations"][0])),
            "{} lists annotation 1 twice",
        ),
        (
            ADE + "ade20k_instance_train.json",
            edit(lambda c: c["annotations"][0]["segmentation"].update(size=[47, 64])),
            "{} has a mask of image ADE_train_00000002 in another size",
        ),
        (
            ADE + "ade20k_instance_train.json",
            edit(lambda c: c["images"].pop()),
            "{} annotates image ADE_train_00000002, which it does not list",
        ),
        (
            ADE + "ade20k_instance_train.json",
            edit(lambda c: c["images"].pop(0)),
            "{} does not list image ADE_train_00000001",
        ),
        (
            ADE + "ade20k_instance_train.json",
            edit(lambda c: c["images"][0].update(width=65)),
            "{} gives image ADE_train_00000001 the width 65, not 64",
        ),
        (
            ADE + "ade20k_instance_train.json",
            edit(lambda c: c["categories"].pop()),
            "{} lacks 1 of 100 categories, the first is 149",
        ),
        (ADE + "ade20k_panoptic_train/ADE_train_00000002.png", delete, "{} is missing"),
        (ADE + "ade20k_panoptic_train/ADE_train_00000002.png", shrink, "{} is 63 x 48 pixels"),
        (
            ADE + "ade20k_panoptic_train/ADE_train_00000002.png",
            paint(1, 0, 0),
            "{} shows segment 1, which",
        ),
        (ADE + "ade20k_panoptic_train/ADE_train_00000002.png", paint(0, 0, 0), "{} shows other"),
        (
            ADE + "ade20k_panoptic_train.json",
            edit(lambda c: segments(c).pop()),
            "which {} does not list",
        ),
        (
            ADE + "ade20k_panoptic_train.json",
            edit(lambda c: segments(c).append({**segments(c)[-1], "id": 5})),
            "does not show segment 5, which {} lists",
        ),
        (
            ADE + "ade20k_panoptic_train.json",
            edit(lambda c: segments(c).append(segments(c)[0])),
            "{} lists segment",
        ),
        (
            ADE + "ade20k_panoptic_train.json",
            edit(lambda c: segments(c)[0].update(category_id=150)),
            "the category 150, which is unknown",
        ),
        (
            ADE + "ade20k_panoptic_train.json",
            edit(lambda c: segments(c)[0].update(area=1)),
            "{} has other segments in image ADE_train_00000002",
        ),
        (
            ADE + "ade20k_panoptic_train.json",
            edit(lambda c: c["categories"][12].update(name="people")),
            "{} calls category 12 'people', not 'person'",
        ),
        (
            ADE + "ade20k_panoptic_train.json",
            edit(lambda c: c["annotations"][0].pop("segments_info")),
            "{} has an entry of 'annotations' without 'segments_info'",
        ),
        (
            ADE + "ade20k_panoptic_train.json",
            edit(lambda c: segments(c)[0].pop("category_id")),
            "{} has an entry of 'segments_info' without 'category_id'",
        ),
        (
            ADE + "ade20k_panoptic_train.json",
            edit(lambda c: c["annotations"].pop(0)),
            "{} does not list image ADE_train_00000001",
        ),
    ],
    "coco": [
        ("coco/train2017/000000000002.jpg", delete, "{} is missing"),
        ("coco/train2017/000000000002.jpg", cut, "{} cannot be read as an image"),
        (
            "coco/train2017/000000000002.jpg",
            duplicate("9.jpg"),
            "9.jpg is not listed in {root}/coco/annotations/inst",
        ),
        ("coco/val2017/000001000001.jpg", shrink, "{} is 63 x 48 pixels, but"),
        (
            "coco/annotations/instances_train2017.json",
            edit(lambda c: c["annotations"][0].update(category_id=12)),
            "{}: annotation 2006 has the category 12, no thing's",
        ),
        (
            "coco/annotations/instances_train2017.json",
            edit(lambda c: c["annotations"][1].update(id=c["annotations"][0]["id"])),
            "{} lists annotation 2006 twice",
        ),
        (
            "coco/annotations/instances_train2017.json",
            edit(lambda c: c["annotations"][1].update(image_id=77)),
            "{} annotates image 77, which it does not list",
        ),
        (
            "coco/annotations/instances_train2017.json",
            edit(lambda c: c["images"].append(c["images"][0])),
            "{} lists image 1 twice",
        ),
        (
            "coco/annotations/instances_train2017.json",
            edit(lambda c: c["annotations"][0].update(segmentation={"size": [64, 48]})),
            "has a mask of size [64, 48], but its image is [48, 64]",
        ),
        (
            "coco/annotations/instances_train2017.json",
            edit(lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]])),
            "{}: annotation 2006 has no polygon of three points",
        ),
        (
            "coco/annotations/instances_train2017.json",
            edit(lambda c: c["annotations"][0].update(segmentation=[1, 2, 3, 4, 5, 6])),
            "{}: annotation 2006 has a mask that is no list of polygons",
        ),
        (
            "coco/annotations/instances_train2017.json",
            edit(lambda c: c.update(images=[7])),
            "{} has an entry of 'images' without 'id'",
        ),
        (
            "coco/annotations/instances_train2017.json",
            edit(lambda c: c["annotations"][0].update(segmentation=[])),
            "has no mask",
        ),
        ("coco/annotations/panoptic_val2017.json", delete, "{} is missing"),
        (
            "coco/annotations/panoptic_val2017.json",
            edit(lambda c: c["annotations"].pop()),
            "{} has no annotation of image 1000002",
        ),
        (
            "coco/annotations/panoptic_val2017.json",
            edit(lambda c: segments(c)[0].update(category_id=12)),
            "of 000001000002.png the category 12, which is unknown",
        ),
        (
            "coco/annotations/panoptic_val2017.json",
            edit(lambda c: segments(c).append(segments(c)[0])),
            "{} lists segment",
        ),
        ("coco/panoptic_val2017/000001000002.png", delete, "{} is missing"),
        ("coco/panoptic_val2017/000001000002.png", shrink, "{} is 63 x 48 pixels"),
        ("coco/panoptic_val2017/000001000002.png", paint(1, 0, 0), "{} shows segment 1, which"),
        ("coco/panoptic_val2017/000001000002.png", duplicate("9.png"), "9.png is not listed in"),
        ("coco/panoptic_semseg_val2017/000001000002.png", delete, "{} is missing"),
        ("coco/panoptic_semseg_val2017/000001000002.png", paint(133), "{} has the label 133"),
        ("coco/panoptic_semseg_val2017/000001000002.png", paint(3), "{} shows other classes than"),
        ("coco/panoptic_semseg_val2017/000001000002.png", shrink, "{} is 63 x 48 pixels"),
        ("coco/panoptic_stuff_val2017/000001000002.png", delete, "{} is missing"),
        ("coco/panoptic_stuff_val2017/000001000002.png", paint(54), "{} has the label 54"),
    ],
    "cityscapes": [
        (f"cityscapes/leftImg8bit/{BOCHUM}leftImg8bit.png", cut, "{} cannot be read as an image"),
        (f"cityscapes/leftImg8bit/{BOCHUM}leftImg8bit.png", delete, "color.png has no picture"),
        (
            f"cityscapes/leftImg8bit/{BOCHUM}leftImg8bit.png",
            duplicate("notes.txt"),
            "notes.txt is not named like a picture",
        ),
        (f"{FINE}{BOCHUM}gtFine_polygons.json", delete, "{} is missing"),
        (f"{FINE}{BOCHUM}gtFine_polygons.json", cut, "{} is damaged or no JSON file"),
        (
            f"{FINE}{BOCHUM}gtFine_polygons.json",
            edit(lambda c: c["objects"][0].update(label="skies")),
            "{} has a polygon of 'skies', which is no label's name",
        ),
        (
            f"{FINE}{BOCHUM}gtFine_polygons.json",
            edit(lambda c: c.update(imgWidth=63)),
            "{} is 63 x 48 pixels, but its picture",
        ),
        (
            f"{FINE}{BOCHUM}gtFine_polygons.json",
            edit(lambda c: c.pop("objects")),
            "{} is no file of polygons",
        ),
        (f"{FINE}{BOCHUM}gtFine_labelIds.png", delete, "{} is missing"),
        (f"{FINE}{BOCHUM}gtFine_labelIds.png", paint(34), "{} has the label 34"),
        (f"{FINE}{BOCHUM}gtFine_labelIds.png", shrink, "{} is 63 x 48 pixels"),
        (f"{FINE}{BOCHUM}gtFine_instanceIds.png", delete, "{} is missing"),
        (f"{FINE}{BOCHUM}gtFine_instanceIds.png", paint(11001), "{} has the instance id 11001"),
        (f"{FINE}{BOCHUM}gtFine_instanceIds.png", paint(26123), "shows other segments than {}"),
        (f"{FINE}{BOCHUM}gtFine_labelTrainIds.png", delete, "{} is missing"),
        (f"{FINE}{BOCHUM}gtFine_labelTrainIds.png", paint(19), "{} has the label 19"),
        (f"{FINE}{BOCHUM}gtFine_labelTrainIds.png", shrink, "{} is 63 x 48 pixels"),
        (
            f"{FINE}{BOCHUM}gtFine_labelTrainIds.png",
            lambda path: Image.fromarray(np.full((48, 64), 3, np.uint8)).save(path),
            "{} shows other classes than",
        ),
        (
            f"{FINE}cityscapes_panoptic_train/bochum_000001_000019_gtFine_panoptic.png",
            paint(33, 0, 0),
            "{} shows segment 33, which",
        ),
        (
            f"{FINE}cityscapes_panoptic_train/bochum_000001_000019_gtFine_panoptic.png",
            duplicate("other.png"),
            "other.png has no picture",
        ),
        (
            f"{FINE}cityscapes_panoptic_train.json",
            edit(lambda c: segments(c)[0].update(category_id=29)),
            "the category 29, which is unknown",
        ),
        (
            f"{FINE}cityscapes_panoptic_train.json",
            edit(lambda c: segments(c)[0].update(iscrowd=1)),
            "{} says otherwise of image bochum_000001_000019 than",
        ),
        (
            f"{FINE}cityscapes_panoptic_train.json",
            edit(lambda c: c["images"].append({**c["images"][0], "id": "ulm"})),
            "{} lists image ulm, of which there is no picture",
        ),
        (
            f"{FINE}cityscapes_panoptic_train.json",
            edit(lambda c: c["annotations"].append(c["annotations"][0])),
            "{} lists annotation aachen_000000_000019 twice",
        ),
    ],
}


@pytest.mark.parametrize(
    ("layout", "name", "fault", "told"),
    [(layout, *case) for layout, cases in CASES.items() for case in cases],
    ids=[f"{layout}-{case[2].strip('{} ')[:40]}" for layout in CASES for case in CASES[layout]],
)
def test_a_planted_fault_is_told(layout, name, fault, told, root, capsys):
    path = root / name
    fault(path)
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    assert check(layout, root) == 1
    lines = capsys.readouterr().err.splitlines()
    found = [line for line in lines if told.format(path, root=root) in line]
    assert len(found) == 1, lines
    assert found[0].endswith(".") and str(root) in found[0]
    assert before == {p: p.stat().st_mtime_ns for p in root.rglob("*")}


@pytest.mark.parametrize("layout", DATASETS)
def test_nothing_is_told_where_all_is_in_order(layout, root, capsys):
    assert check(layout, root) == 0
    told = capsys.readouterr()
    assert "is in order: 2 train pictures (" in told.out and ", 2 val pictures (" in told.out
    assert str(root) not in told.err


def test_a_lost_listing_is_told_once(root, capsys):
    (root / "ADEChallengeData2016" / "ade20k_panoptic_train.json").unlink()
    assert check("ade20k", root) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if str(root) in line]
    assert len(lines) == 1 and "ade20k_panoptic_train.json is missing" in lines[0]


def test_polygons_that_training_leaves_out_beside_others_are_in_order(root):
    path = root / "coco" / "annotations" / "instances_train2017.json"
    edit(lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4], [0, 0, 5, 0, 5, 5]]))(
        path
    )
    assert check("coco", root) == 0


def test_several_processes_tell_the_same(root, capsys):
    (root / "coco" / "panoptic_semseg_val2017" / "000001000001.png").unlink()
    cut(root / "coco" / "train2017" / "000000000001.jpg")
    told = []
    for workers in ("1", "3"):
        assert check("coco", root, "--workers", workers) == 1
        told.append([x for x in capsys.readouterr().err.splitlines() if str(root) in x])
    assert told[0] == told[1] and len(told[0]) == 2


def test_of_many_faults_the_first_are_told(tmp_path, capsys):
    request = {"train": 24, "val": 1, "size": (32, 32), "seed": 0, "progress": False}
    write_dataset(layout="ade20k", root=tmp_path, **request)
    for path in (tmp_path / "ADEChallengeData2016").glob("annotations_detectron2/training/*"):
        path.unlink()
    assert check("ade20k", tmp_path) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if "is missing" in line]) == 20
    assert "And 4 more." in lines


def test_a_root_without_the_dataset_is_told(tmp_path):
    with pytest.raises(UserError, match="coco is missing; name the folder that holds coco"):
        check("coco", tmp_path)
    (tmp_path / "coco").mkdir()
    assert check("coco", tmp_path) == 1
