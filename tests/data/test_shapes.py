"""The shapes dataset: what its scenes hold, and that it lies as the official sets do."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES
from panopticapi.utils import rgb2id
from PIL import Image
from pycocotools import mask as mask_util

from aff_seg.data.preparation.command import main
from aff_seg.data.shapes import LAYOUTS, write_dataset
from aff_seg.data.shapes.coco_categories import panoptic_categories
from aff_seg.data.shapes.kinds import GROUNDS, THINGS
from aff_seg.data.shapes.outlines import mask_to_polygons
from aff_seg.data.shapes.polygons import clip_to_image, fill
from aff_seg.data.shapes.scene import draw_scene
from aff_seg.errors import UserError

REPO = Path(__file__).parents[2]
SCRIPT = REPO / "datasets" / "make_shapes.py"
SIZE = (96, 160)
COUNTS = {"train": 7, "val": 6}
# Both splits of this seed have crowds and clutter.
SEED = 7


def scene(seed: int, split: int, index: int, size: tuple[int, int] = SIZE):
    return draw_scene(np.random.default_rng([seed, split, index]), size)


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def run(*command: object, cwd: Path = REPO, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **env},
        check=False,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """All three layouts in one dataset root."""
    root = tmp_path_factory.mktemp("shapes")
    for layout in LAYOUTS:
        assert write_dataset(
            layout=layout, root=root, size=SIZE, seed=SEED, progress=False, **COUNTS
        )
    return root


@pytest.fixture(scope="module")
def scenes():
    return [scene(3, 0, i, (192, 384)) for i in range(40)]


# Scenes


def extent(polygon: np.ndarray) -> int:
    return int((polygon.max(axis=0) - polygon.min(axis=0)).max()) + 1


def test_scenes_hold_all_kinds(scenes):
    names = {region.kind.name for s in scenes for region in s.regions}
    assert {kind.name for kind in THINGS + GROUNDS} <= names
    assert len(THINGS) >= 6


def test_things_range_from_six_pixels_to_half_the_image(scenes):
    sizes = [extent(r.polygon) for s in scenes for r in s.regions if r.kind.is_thing]
    assert 4 <= min(sizes) <= 7
    assert 86 <= max(sizes) <= 96
    assert np.mean(np.array(sizes) <= 30) > 0.4


def test_things_overlap_and_stay_visible(scenes):
    overlaps = 0
    for s in scenes:
        for index, region in enumerate(s.regions):
            if region.kind.is_thing:
                full = fill(region.polygon, s.labels.shape).sum()
                visible = (s.labels == index).sum()
                assert visible >= max(0.4 * full, 12)
                overlaps += visible < full
    assert overlaps > 40


def test_labels_are_the_polygons_painted_in_order(scenes):
    for s in scenes[:8]:
        expected = np.zeros_like(s.labels)
        for index, region in enumerate(s.regions):
            expected[fill(region.polygon, s.labels.shape)] = index
        np.testing.assert_array_equal(s.labels, expected)


def test_segments_part_the_image(scenes):
    covered = sum(segment.mask.astype(int) for segment in scenes[0].segments())
    assert (covered == 1).all()


def test_scenes_differ_by_seed_split_and_index():
    images = [scene(*key).image for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    for i, first in enumerate(images):
        for second in images[i + 1 :]:
            assert np.abs(first.astype(int) - second).mean() > 5


def test_clip_to_image_cuts_at_the_border():
    square = np.array([(-5, 2), (4, 2), (4, 20), (-5, 20)])
    mask = fill(clip_to_image(square, (10, 12)), (10, 12))
    expected = np.zeros((10, 12), dtype=bool)
    expected[2:, :5] = True
    np.testing.assert_array_equal(mask, expected)
    assert len(clip_to_image(square - 50, (10, 12))) == 0


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_mask_to_polygons_is_exact(density):
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.random((9, 13)) < density
        polygons = mask_to_polygons(mask)
        rle = mask_util.merge(mask_util.frPyObjects(polygons, *mask.shape))
        np.testing.assert_array_equal(mask_util.decode(rle).astype(bool), mask)


# Bytes


WRITE_OTHERS = """
import sys
from aff_seg.data.shapes import write_dataset
root, height, width, train, val, seed = sys.argv[1], *map(int, sys.argv[2:])
for layout in ("coco", "ade20k"):
    write_dataset(
        layout=layout, root=root, train=train, val=val, size=(height, width), seed=seed
    )
"""


def test_same_seed_same_bytes_in_other_processes(root, tmp_path):
    numbers = ("--train", COUNTS["train"], "--val", COUNTS["val"], "--seed", SEED)
    for done in (
        run(
            *(SCRIPT, "--layout", "cityscapes", "--root", tmp_path, "--size", *SIZE, *numbers),
            PYTHONHASHSEED="17",
        ),
        run("-c", WRITE_OTHERS, tmp_path, *SIZE, *COUNTS.values(), SEED, PYTHONHASHSEED="18"),
    ):
        assert done.returncode == 0, done.stderr
    assert digests(tmp_path) == digests(root)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_image_does_not_depend_on_how_many_there_are(layout, root, tmp_path):
    write_dataset(
        layout=layout, root=tmp_path, train=3, val=2, size=SIZE, seed=SEED, progress=False
    )
    few, many = digests(tmp_path), digests(root)
    pictures = [name for name in few if name.endswith((".png", ".jpg"))]
    assert len(pictures) >= 5
    assert all(few[name] == many[name] for name in pictures)


def test_no_validation_image_is_a_training_image(root):
    pixels = {"train": set(), "val": set()}
    for split in pixels:
        for path in (root / "cityscapes" / "leftImg8bit" / split).rglob("*.png"):
            pixels[split].add(np.asarray(Image.open(path)).tobytes())
    assert [len(p) for p in pixels.values()] == list(COUNTS.values())
    assert not pixels["train"] & pixels["val"]


# Layouts


def test_cityscapes_files_and_encodings(root):
    top = root / "cityscapes"
    stem = "aachen_000003_000019"
    expected = scene(SEED, 0, 3)
    picture = np.asarray(Image.open(top / f"leftImg8bit/train/aachen/{stem}_leftImg8bit.png"))
    np.testing.assert_array_equal(picture, expected.image)
    beside = f"gtFine/train/aachen/{stem}_gtFine_"
    polygons = json.loads((top / (beside + "polygons.json")).read_text())
    assert (polygons["imgHeight"], polygons["imgWidth"]) == SIZE
    instances = Image.open(top / (beside + "instanceIds.png"))
    assert instances.mode in ("I", "I;16")
    ids = np.asarray(instances).astype(int)
    labels = np.asarray(Image.open(top / (beside + "labelIds.png")))
    np.testing.assert_array_equal(np.where(ids >= 1000, ids // 1000, ids), labels)
    seen = {int(expected.labels[ids == i][0]) for i in np.unique(ids) if i >= 1000}
    single = {i for i, r in enumerate(expected.regions) if r.kind.is_thing and not r.crowd}
    assert seen == single
    for i in np.unique(ids[ids >= 1000]):
        assert len(np.unique(expected.labels[ids == i])) == 1
    panoptic = np.asarray(
        Image.open(top / f"gtFine/cityscapes_panoptic_train/{stem}_gtFine_panoptic.png")
    )
    known = labels > 6
    np.testing.assert_array_equal(rgb2id(panoptic), np.where(known, ids, 0))


def test_coco_instances_are_the_panoptic_things(root):
    top = root / "coco"
    crowds = 0
    for split in COUNTS:
        instances = json.loads((top / f"annotations/instances_{split}2017.json").read_text())
        panoptic = json.loads((top / f"annotations/panoptic_{split}2017.json").read_text())
        assert len(instances["categories"]) == 80
        assert len(panoptic["categories"]) == 133
        assert len({a["id"] for a in instances["annotations"]}) == len(instances["annotations"])
        thing_ids = {c["id"] for c in instances["categories"]}
        for entry in panoptic["annotations"]:
            ids = rgb2id(np.asarray(Image.open(top / f"panoptic_{split}2017/{entry['file_name']}")))
            assert set(np.unique(ids)) - {0} == {s["id"] for s in entry["segments_info"]}
            picture = Image.open(top / f"{split}2017/{entry['image_id']:012d}.jpg")
            assert picture.size == SIZE[::-1]
            things = [s for s in entry["segments_info"] if s["category_id"] in thing_ids]
            annotations = [
                a for a in instances["annotations"] if a["image_id"] == entry["image_id"]
            ]
            assert len(things) == len(annotations) > 0
            for segment, annotation in zip(things, annotations, strict=True):
                mask = ids == segment["id"]
                np.testing.assert_array_equal(decode(annotation["segmentation"]), mask)
                for key in ("category_id", "iscrowd", "bbox", "area"):
                    assert segment[key] == annotation[key]
                assert annotation["area"] == mask.sum()
                assert isinstance(annotation["segmentation"], dict) == annotation["iscrowd"]
                crowds += annotation["iscrowd"]
    assert crowds > 0


def decode(segmentation: list | dict) -> np.ndarray:
    rle = mask_util.frPyObjects(segmentation, *SIZE)
    if isinstance(segmentation, list):
        rle = mask_util.merge(rle)
    return mask_util.decode(rle).astype(bool)


def test_coco_categories_have_families():
    families = [category["supercategory"] for category in panoptic_categories()]
    assert len(families) == 133
    assert len(set(families)) == 27


def test_ade20k_encodings(root):
    top = root / "ADEChallengeData2016"
    for index in range(COUNTS["val"]):
        drawn = scene(SEED, 1, index)

        def read(kind, name=f"ADE_val_{index + 1:08d}.png"):
            return np.asarray(Image.open(top / kind / "validation" / name))

        classes = read("annotations")
        expected = np.array([r.kind.ade20k for r in drawn.regions])[drawn.labels]
        np.testing.assert_array_equal(classes, expected)
        np.testing.assert_array_equal(
            read("annotations_detectron2"), (classes.astype(int) - 1) % 256
        )
        instances = read("annotations_instance")
        assert instances.shape == (*SIZE, 3)
        thing_classes = [kind.ade20k for kind in THINGS]
        np.testing.assert_array_equal(instances[..., 1] > 0, np.isin(classes, thing_classes))
        pairs = set(zip(instances[..., 0].flat, instances[..., 1].flat, strict=True)) - {(0, 0)}
        assert len(pairs) == sum(r.kind.is_thing for r in drawn.regions)


def test_kinds_name_real_ade20k_classes():
    names = {kind.name: ADE20K_SEM_SEG_CATEGORIES[kind.ade20k - 1] for kind in THINGS + GROUNDS}
    assert names["disk"] == "person" and names["star"] == "minibike, motorbike"
    assert names["clouds"] == "sky" and names["leaves"] == "tree"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_prepared_of_a_dataset_is_there_already(layout, root, capsys):
    arguments = ["--root", str(root), "--workers", "1", "--check"]
    assert main(LAYOUTS[layout].dataset, "", arguments) == 0


COUNT_RECORDS = """
import json, sys
from detectron2.data import DatasetCatalog
found = {}
for name in sys.argv[1:]:
    records = DatasetCatalog.get(name)
    categories = [a["category_id"] for r in records for a in r.get("annotations", [])]
    categories += [s["category_id"] for r in records for s in r.get("segments_info", [])]
    found[name] = [len(records), min(categories, default=0), max(categories, default=0)]
print("FOUND " + json.dumps(found))
"""


def test_detectron2_reads_every_layout_by_its_own_names(root):
    beginnings = {
        "cityscapes_fine_panoptic_": 19,
        "cityscapes_fine_instance_seg_": 8,
        "cityscapes_fine_sem_seg_": 1,
        "ade20k_sem_seg_": 1,
    }
    classes = {b + split: n for b, n in beginnings.items() for split in COUNTS}
    for split in COUNTS:
        classes[f"coco_2017_{split}"] = 80
        classes[f"coco_2017_{split}_panoptic"] = 133
    done = run("-c", COUNT_RECORDS, *classes, DETECTRON2_DATASETS=str(root))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.split("FOUND ")[1])
    for name, (count, lowest, highest) in found.items():
        assert count == COUNTS["train" if "train" in name else "val"]
        assert 0 <= lowest <= highest < classes[name]


@pytest.mark.skipif(not hasattr(np, "in1d"), reason="Cityscapes' scripts want an older numpy")
def test_ground_truth_as_prediction_scores_one_hundred(root, tmp_path):
    script = Path(__file__).with_name("perfect_prediction.py")
    # Cityscapes' script leaves a file in the working directory.
    name = "cityscapes_fine_panoptic_val"
    done = run(script, name, cwd=tmp_path, DETECTRON2_DATASETS=str(root))
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout.split("SCORES ")[1])
    for metric in ("PQ", "PQ_th", "PQ_st"):
        assert scores["panoptic_seg"][metric] == pytest.approx(100)
    assert scores["segm"]["AP"] == pytest.approx(100)
    assert scores["sem_seg"]["IoU"] == pytest.approx(100)


# Where it may write


SMALL = {"layout": "ade20k", "train": 1, "val": 1, "size": (32, 40), "progress": False}


def test_a_finished_dataset_is_left_alone(tmp_path):
    assert write_dataset(root=tmp_path, **SMALL)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert not write_dataset(root=tmp_path, **SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_an_unfinished_dataset_is_made_anew(tmp_path):
    write_dataset(root=tmp_path / "whole", **SMALL)
    broken = tmp_path / "broken" / "ADEChallengeData2016"
    broken.mkdir(parents=True)
    (broken / "shapes.json").write_text(json.dumps({"layout": "ade20k", "train": 5}))
    (broken / "images").mkdir()
    (broken / "images" / "half.jpg").write_bytes(b"")
    assert write_dataset(root=tmp_path / "broken", **SMALL)
    assert digests(tmp_path / "broken") == digests(tmp_path / "whole")


def test_other_arguments_are_refused(tmp_path):
    write_dataset(root=tmp_path, **SMALL)
    with pytest.raises(UserError, match="other arguments.*train 1"):
        write_dataset(root=tmp_path, **{**SMALL, "train": 2})


def test_a_dataset_that_lost_files_is_refused(tmp_path):
    write_dataset(root=tmp_path, **SMALL)
    next(tmp_path.rglob("*.jpg")).unlink()
    with pytest.raises(UserError, match="14 files where 15"):
        write_dataset(root=tmp_path, **SMALL)


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="thesis.tex"):
        write_dataset(root=tmp_path, **SMALL)
    real = tmp_path / "real"
    (real / "coco" / "val2017").mkdir(parents=True)
    with pytest.raises(UserError, match="holds coco"):
        write_dataset(root=real, **SMALL)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"train": -1}, "train is -1"),
        ({"val": 0}, "val is 0"),
        ({"size": (16, 384)}, "size is 16 384"),
        ({"seed": -3}, "seed is -3"),
        ({"layout": "pascal"}, "one of ade20k, coco, cityscapes"),
    ],
)
def test_bad_arguments_are_named(change, told, tmp_path):
    with pytest.raises(UserError, match=told) as caught:
        write_dataset(root=tmp_path, **{**SMALL, **change})
    assert "\n" not in str(caught.value)


def test_a_root_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write below"):
        write_dataset(root=tmp_path / "file" / "below", **SMALL)


def test_command_line_warns_of_dots_and_fails_in_one_line(tmp_path):
    root = tmp_path / "shapes.v1"
    arguments = [SCRIPT, "--layout", "cityscapes", "--root", root, "--val", 1, "--size", 32, 40]
    done = run(*arguments, "--train", 0)
    assert done.returncode == 1
    warning, error = done.stderr.splitlines()
    assert "contains a dot" in warning
    assert error.startswith("train is 0")
    assert not root.exists()
