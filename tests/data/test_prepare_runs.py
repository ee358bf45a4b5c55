"""Runs of the prepare scripts that are killed, go on, meet another, or lose a process."""

import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from panopticapi.utils import rgb2id
from PIL import Image
from tqdm import tqdm

from aff_seg.data.ade20k import THINGS
from aff_seg.data.preparation import files, processes
from aff_seg.data.preparation.ade20k import ADE20K
from aff_seg.data.preparation.cityscapes import CITYSCAPES
from aff_seg.data.preparation.coco import COCO
from aff_seg.data.preparation.command import main
from aff_seg.data.preparation.files import write_png
from aff_seg.data.preparation.processes import run_jobs
from aff_seg.data.preparation.segments import distinct, measure
from aff_seg.data.shapes import write_dataset
from aff_seg.errors import UserError

DATASETS = {"ade20k": ADE20K, "coco": COCO, "cityscapes": CITYSCAPES}


def draw(root: Path, layout: str, train: int = 2) -> None:
    request = {"train": train, "val": 1, "size": (32, 48), "seed": 1, "progress": False}
    write_dataset(layout=layout, root=root, raw=True, **request)


def prepare(layout: str, root: Path, *options: object) -> int:
    return main(DATASETS[layout], "", ["--root", str(root), *map(str, options)])


def content(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def run_aside(layout: str, root: Path, *options: object) -> multiprocessing.Process:
    """Prepare in a process that can be killed."""

    def work() -> None:
        os.setsid()
        # Killed with the lock that it shares with this process, it would leave that waiting.
        tqdm.set_lock(threading.RLock())
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        os._exit(prepare(layout, root, *options))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def processes_of_session(session: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = path.read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(of) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def processes_left(session: int) -> list[int]:
    """What has not ended of a session within seconds; it is killed."""
    deadline = time.monotonic() + 10
    while (left := processes_of_session(session)) and time.monotonic() < deadline:
        time.sleep(0.01)
    for process in left:
        os.kill(process, signal.SIGKILL)
    return left


def finished(root: Path) -> dict[str, bytes]:
    """Files under their final names; others may vanish at any time."""
    files = (p for p in root.rglob("*") if not p.name.startswith(".") and p.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.mark.parametrize("layout", DATASETS)
def test_a_killed_run_goes_on_and_makes_the_same_bytes(layout, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for root in (whole, killed):
        draw(root, layout, train=20)
    first = len(content(killed))
    assert prepare(layout, whole, "--workers", 1) == 0
    expected = content(whole)
    for share in (0.2, 0.5, 0.8):
        process = run_aside(layout, killed, "--workers", 2)
        while len(finished(killed)) < first + share * (len(expected) - first):
            assert process.exitcode is None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert not processes_left(process.pid)
        found = finished(killed)
        assert len(found) < len(expected)
        assert all(expected[name] == data for name, data in found.items())
    assert prepare(layout, killed, "--workers", 2) == 0
    assert content(killed) == expected


def test_what_was_done_before_a_kill_is_not_done_again(tmp_path, capsys):
    draw(tmp_path, "ade20k", train=6)
    assert prepare("ade20k", tmp_path, "--workers", 1) == 0
    folder = tmp_path / "ADEChallengeData2016"
    expected = content(folder)
    # As a run leaves it that was killed after four of six images, while it wrote a line.
    listing = json.loads((folder / "ade20k_panoptic_train.json").read_text())
    lines = [
        json.dumps({"image": image, "annotations": [annotation]})
        for image, annotation in zip(listing["images"], listing["annotations"], strict=True)
    ]
    journal = folder / ".ade20k_panoptic_train.json.journal"
    journal.write_text("\n".join(lines[:4]) + "\n" + lines[4][:50])
    (folder / "ade20k_panoptic_train.json").unlink()
    (folder / "ade20k_panoptic_train" / "ADE_train_00000006.png").unlink()
    capsys.readouterr()
    assert prepare("ade20k", tmp_path, "--workers", 1) == 0
    told = capsys.readouterr().out
    assert "ADE20K train panoptic: 2 done, 4 done before, 0 failed." in told
    assert content(folder) == expected


def test_a_damaged_listing_is_made_anew(tmp_path):
    draw(tmp_path, "cityscapes")
    assert prepare("cityscapes", tmp_path, "--workers", 1) == 0
    expected = content(tmp_path)
    path = tmp_path / "cityscapes" / "gtFine" / "cityscapes_panoptic_train.json"
    path.write_bytes(path.read_bytes()[:100])
    assert prepare("cityscapes", tmp_path, "--workers", 1) == 0
    assert content(tmp_path) == expected


def test_a_listing_follows_the_pictures(tmp_path):
    draw(tmp_path, "ade20k", train=3)
    assert prepare("ade20k", tmp_path, "--workers", 1) == 0
    folder = tmp_path / "ADEChallengeData2016"
    for path in folder.rglob("ADE_train_00000002.*"):
        path.unlink()
    assert prepare("ade20k", tmp_path, "--workers", 1) == 0
    for task in ("instance", "panoptic"):
        listing = json.loads((folder / f"ade20k_{task}_train.json").read_text())
        assert [image["id"][-1] for image in listing["images"]] == ["1", "3"]
    assert prepare("ade20k", tmp_path, "--workers", 1, "--check") == 0


def test_two_runs_at_a_time_are_refused(tmp_path, monkeypatch):
    draw(tmp_path, "coco")
    monkeypatch.setattr(processes, "_PATIENCE", 0.1)
    with open(tmp_path / "coco" / ".preparing", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="Another run is preparing"):
            prepare("coco", tmp_path, "--workers", 1)
    # A file that a killed run left is no hindrance.
    assert prepare("coco", tmp_path, "--workers", 1) == 0
    assert not (tmp_path / "coco" / ".preparing").exists()


def _die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_process_that_dies_is_told():
    with pytest.raises(UserError, match="fewer --workers"):
        list(run_jobs(_die, range(8), workers=2, title="dying", progress=False))


def _half(number: int) -> float:
    return 1 / (number - 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_no_one_foresaw_is_told_with_the_job(workers):
    outcomes = list(run_jobs(_half, range(3), workers=workers, title="halves", progress=False))
    assert [value for _, value, _ in outcomes] == [-1.0, None, 1.0]
    assert outcomes[1][2] == "1 cannot be used (ZeroDivisionError: division by zero)."


def test_a_folder_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    draw(tmp_path, "coco")

    def refuse(path, *rest):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(processes.os, "open", refuse)
    with pytest.raises(UserError, match=r"Cannot write .*coco/\.preparing \(Permission denied\)"):
        prepare("coco", tmp_path, "--workers", 1)


def test_the_root_may_begin_at_the_home_folder(tmp_path, monkeypatch):
    draw(tmp_path, "coco")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DETECTRON2_DATASETS", "~")
    assert main(COCO, "", ["--workers", "1"]) == 0


def test_a_file_that_cannot_be_written_is_told_and_not_its_source(tmp_path, monkeypatch, capsys):
    draw(tmp_path, "coco")

    def refuse(path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(files, "atomic_open", refuse)
    assert prepare("coco", tmp_path, "--workers", 1, "--splits", "val") == 1
    made = tmp_path / "coco" / "panoptic_semseg_val2017" / "000001000001.png"
    assert f"\nCannot write {made}: No space left on device; free" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--workers", "0"], "'0' is no whole number from 1"),
        (["--workers", "two"], "'two' is no whole number from 1"),
        (["--tasks", "depth"], "invalid choice: 'depth'"),
        (["--splits", "test"], "invalid choice: 'test'"),
    ],
)
def test_bad_arguments_are_refused(options, told, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        prepare("coco", tmp_path, *options)
    assert told in capsys.readouterr().err


# Rules that drawings do not show


def ade20k(folder: Path, labels: np.ndarray, instances: np.ndarray) -> tuple[np.ndarray, dict]:
    """Panoptic ids and annotation of one image with the given labels."""
    top = folder / "ADEChallengeData2016"
    for kind, pixels in (("annotations", labels), ("annotations_instance", instances)):
        (top / kind / "training").mkdir(parents=True)
        write_png(top / kind / "training" / "a.png", pixels.astype(np.uint8))
    (top / "images" / "training").mkdir(parents=True)
    Image.new("RGB", labels.shape[::-1]).save(top / "images" / "training" / "a.jpg")
    options = ("--splits", "train", "--workers", 1)
    assert prepare("ade20k", folder, *options) == prepare("ade20k", folder, *options, "--check")
    ids = rgb2id(np.asarray(Image.open(top / "ade20k_panoptic_train" / "a.png")))
    return ids, json.loads((top / "ade20k_panoptic_train.json").read_text())["annotations"][0]


def test_ade20k_stuff_keeps_its_area_where_things_come_over_it(tmp_path):
    labels = np.full((10, 12), 3)  # sky
    labels[8:] = 13  # a person, who is no thing here
    labels[7, :2] = 7  # road, hidden below
    instances = np.zeros((10, 12, 3))
    instances[4:8, :6] = (4, 1, 0)  # a person
    ids, annotation = ade20k(tmp_path, labels, instances)
    sky, road, person = annotation["segments_info"]
    assert (sky["category_id"], sky["area"], sky["bbox"]) == (2, 94, [0, 0, 12, 8])
    assert (road["category_id"], road["area"], road["bbox"]) == (6, 2, [0, 7, 2, 1])
    assert (person["category_id"], person["area"], person["bbox"]) == (12, 24, [0, 4, 6, 4])
    assert (ids == sky["id"]).sum() == 96 - 24 and (ids == person["id"]).sum() == 24
    assert (ids[8:] == 0).all() and road["id"] not in ids
    assert sky["id"] == 0x06 + 256 * 0xE6 + 65536 * 0xE6


def test_ade20k_tells_many_things_of_a_class_apart(tmp_path):
    # All things of all classes, two each, and every class of stuff.
    labels = np.zeros((20, 151))
    labels[:] = np.arange(151)
    instances = np.zeros((20, 151, 3))
    for column, number in enumerate(np.arange(200) % 100 + 1):
        instances[10 * (column // 100) : 10 * (column // 100) + 10, column % 100] = (
            number,
            column + 1,
            0,
        )
    ids, annotation = ade20k(tmp_path, labels, instances)
    segments = annotation["segments_info"]
    assert [s["category_id"] for s in segments] == [
        *(i for i in range(150) if i not in THINGS),
        *THINGS,
        *THINGS,
    ]
    assert len({s["id"] for s in segments}) == 250 and min(s["id"] for s in segments) > 0
    for segment in segments[50:]:
        assert (ids == segment["id"]).sum() == 10
    # Their colours are drawn by lot, but always the same.
    top = tmp_path / "ADEChallengeData2016"
    before = content(top)
    np.random.seed(17)
    state = np.random.get_state()[1].tolist()
    for path in top.glob("ade20k_panoptic_train*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert prepare("ade20k", tmp_path, "--splits", "train", "--workers", 1) == 0
    assert content(top) == before
    assert np.random.get_state()[1].tolist() == state


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (3, 40)])
def test_distinct_is_unique(shape):
    rng = np.random.default_rng(0)
    for most in (1, 2, 70_000):
        ids = rng.integers(0, most, shape)
        values, places = distinct(ids)
        np.testing.assert_array_equal(values, np.unique(ids))
        np.testing.assert_array_equal(values[places], ids)
        for value, measures in measure(ids).items():
            rows, columns = np.nonzero(ids == value)
            left, top = columns.min(), rows.min()
            assert measures["area"] == rows.size
            assert measures["bbox"] == [
                *(left, top),
                *(columns.max() - left + 1, rows.max() - top + 1),
            ]
