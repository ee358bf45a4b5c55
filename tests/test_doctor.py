"""The doctor: what it reports, and what it calls wrong."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aff_seg import doctor, ops

ROOT = Path(doctor.__file__).resolve().parent.parent
GOOD = {
    **dict.fromkeys(doctor.MODULES, "1.0"),
    "numpy": "1.26.4",
    "cv2": "4.11.0.86",
    "PIL": "11.3.0",
    "cityscapesscripts": "2.3.0",
    "setuptools": "81.0.0",
}


def test_good_versions_have_no_faults():
    assert doctor.check_versions(GOOD) == []


@pytest.mark.parametrize(
    ("changed", "words", "fatal"),
    [
        ({"torch": None, "detectron2": None}, "make setup`: torch, detectron2", True),
        ({"numpy": "2.1.0", "cv2": "4.9.0.80"}, "built for numpy 1 and numpy is 2.1.0", True),
        ({"setuptools": "82.0.1"}, "pkg_resources", False),
        ({"setuptools": None}, "(missing) brings no pkg_resources", False),
    ],
)
def test_faulty_versions(changed, words, fatal):
    (fault,) = doctor.check_versions({**GOOD, **changed})
    assert words in fault.text
    assert fault.fatal is fatal
    assert "\n" not in fault.text


def test_new_releases_are_no_fault():
    newest = {"numpy": "2.4.6", "cv2": "5.0.0.93", "PIL": "13.0.0"}
    assert doctor.check_versions({**GOOD, "numpy": "2.1.0"}) == []
    assert doctor.check_versions({**GOOD, **newest}) == []


@pytest.mark.parametrize(
    ("version", "fatal"),
    [((3, 9, 1), [True]), ((3, 10, 0), []), ((3, 12, 9), []), ((3, 13, 0), [False])],
)
def test_python_versions(version, fatal):
    assert [fault.fatal for fault in doctor.check_python(version)] == fatal


def test_a_package_that_does_not_import(tmp_path, monkeypatch):
    (tmp_path / "broken_extension.py").write_text("raise OSError('libcudart.so.13: no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    (fault,) = doctor.check_imports(("json", "broken_extension"))
    assert "broken_extension does not import (OSError: libcudart.so.13" in fault.text
    assert fault.fatal


def test_detectron2_with_unpublished_imports(tmp_path):
    for name in ("data/datasets/cityscapes.py", "evaluation/cityscapes_evaluation.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("import cityscapesscripts\n")
    assert doctor.check_detectron2(tmp_path) == []
    (tmp_path / name).write_text("from deeplearning.projects.cityscapesApi import x\n")
    (fault,) = doctor.check_detectron2(tmp_path)
    assert "Cityscapes" in fault.text and not fault.fatal


@pytest.mark.parametrize(
    ("capability", "built", "expected"),
    [
        ((8, 6), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80", "sm_90a"], True),
        ((12, 0), ["sm_80", "sm_90"], False),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((12, 1), ["sm_120"], True),
        ((7, 0), ["compute_75"], False),
    ],
)
def test_which_gpus_a_build_serves(capability, built, expected):
    assert doctor.runs_on(capability, built) is expected


def test_datasets(tmp_path):
    for part in doctor.DATASETS["cityscapes"]:
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "coco" / "train2017").mkdir(parents=True)
    states = doctor.describe_datasets(tmp_path)
    assert states["cityscapes"] == "found"
    assert states["ade20k"] == "not there"
    assert states["coco"].startswith("incomplete, without coco/val2017")


def test_report_of_this_installation(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "check_package", lambda: [])
    status = doctor.main()
    printed = capsys.readouterr().out
    assert status == 0, printed
    for words in ("torch", "detectron2", "CPU", "GPU", "C++ compiler", "knn", "cityscapes"):
        assert words in printed


def test_package_that_does_not_import(monkeypatch, tmp_path):
    (tmp_path / "aff_seg.py").write_text("import no_such_module\n")
    monkeypatch.chdir(tmp_path)
    (fault,) = doctor.check_package()
    assert "No module named 'no_such_module'" in fault.text and fault.fatal


def test_report_without_any_package():
    """`-S` hides every installed package, as on a machine where nothing is set up."""
    command = [sys.executable, "-S", "-m", "aff_seg.doctor"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == ""
    assert "problem: missing, run `make setup`: torch, " in done.stdout


def test_a_folder_of_that_name_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "some_clone").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.util.find_spec("some_clone") is not None
    monkeypatch.setattr(doctor, "MODULES", ("some_clone",))
    assert doctor.find_versions()["some_clone"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize(
    ("devices", "remedy"),
    [(("cpu",), "with the CUDA toolkit"), (("cpu", "cuda"), "TORCH_CUDA_ARCH_LIST=9.0 make setup")],
)
def test_operators_that_do_not_run_on_the_gpu(monkeypatch, devices, remedy):
    monkeypatch.setattr(ops, "NATIVE_DEVICES", devices)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    (fault,) = doctor.check_gpu_operators()
    assert remedy in fault.text and not fault.fatal
