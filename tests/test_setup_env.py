"""`make setup`: its sentences, its stamp, and the repair of what an earlier run left."""

import ast
import csv
import fcntl
import importlib
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import setuptools
import torch
from packaging.requirements import Requirement
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tools"


@pytest.fixture
def setup_env(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("setup_env")


@pytest.fixture
def checks(setup_env):
    return importlib.import_module("setup_env_checks")


@pytest.fixture
def repair(setup_env):
    return importlib.import_module("setup_env_repair")


@pytest.fixture
def checkout(tmp_path):
    """A folder with the files that the stamp depends on, and a Python in its `.venv`."""
    root = tmp_path / "checkout"
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "python").symlink_to(sys.executable)
    for name in importlib.import_module("setup_env").STAMPED:
        shutil.copy(ROOT / name, root / name)
    return root


def assert_one_sentence(text):
    assert "\n" not in text and text.endswith(".")


# Sentences.


@pytest.mark.parametrize("name", sorted(path.stem for path in TOOLS.glob("setup_env*.py")))
def test_old_pythons_can_read_the_scripts(name):
    ast.parse((TOOLS / f"{name}.py").read_text(), feature_version=(3, 6))


@pytest.mark.parametrize("version", [(3, 10, 0), (3, 11, 7), (3, 12, 1)])
def test_suitable_python(checks, version):
    checks.check_python(version, "python3")


@pytest.mark.parametrize(
    ("version", "fault"), [((2, 7), "old"), ((3, 9, 18), "old"), ((3, 13), "new"), ((4, 0), "new")]
)
def test_unsuitable_python(checks, version, fault):
    with pytest.raises(checks.SetupError, match=f"too {fault}") as caught:
        checks.check_python(version, "/opt/python")
    assert "/opt/python" in str(caught.value)
    assert_one_sentence(str(caught.value))


@pytest.mark.parametrize("absent", ["venv", "ensurepip"])
def test_python_without_venv(checks, monkeypatch, absent):
    monkeypatch.setattr(
        checks.importlib.util, "find_spec", lambda name: None if name == absent else "there"
    )
    with pytest.raises(checks.SetupError, match="python3.11-venv") as caught:
        checks.check_venv_module((3, 11, 2))
    assert_one_sentence(str(caught.value))


def test_full_disk(checks, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda folder: usage(3 << 30))
    checks.check_disk("/", 2 << 30)
    with pytest.raises(checks.SetupError, match="10 GB are needed and 3.0 GB are free") as caught:
        checks.check_disk("/", 10 << 30)
    assert_one_sentence(str(caught.value))


@pytest.mark.parametrize(
    ("present", "wanted"), [({"g++"}, "git"), ({"git"}, r"a C\+\+ compiler"), (set(), "git")]
)
def test_source_build_without_its_tools(checks, monkeypatch, present, wanted):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(checks.shutil, "which", lambda name: name if name in present else None)
    with pytest.raises(checks.SetupError, match=f"needs {wanted}:") as caught:
        checks.check_source_build()
    assert_one_sentence(str(caught.value))


def test_source_build_takes_the_compiler_of_cxx(checks, monkeypatch):
    monkeypatch.setenv("CXX", "icpx")
    monkeypatch.setattr(
        checks.shutil, "which", lambda name: f"/bin/{name}" if name in ("git", "icpx") else None
    )
    checks.check_source_build()
    assert checks.find_compiler() == "/bin/icpx"


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("WARNING: Retrying after connection broken by 'NewConnectionError'", "the package index"),
        ("fatal: unable to access 'https://github.com/x/y/': Could not resolve host", "github.com"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("fine\nERROR: No matching distribution found for x==1\nnotice", "No matching"),
        ("", "no output"),
    ],
)
def test_failed_command(checks, output, expected):
    sentence = checks.explain_failure("installing x", output, ".venv/setup.log")
    assert expected in sentence and ".venv/setup.log" in sentence
    assert_one_sentence(sentence)


def test_main_says_one_sentence(setup_env, checks, monkeypatch, capsys):
    monkeypatch.setattr(checks, "OLDEST", (3, 90))
    monkeypatch.setattr(checks, "NEWEST", (3, 91))
    assert setup_env.main([]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("make setup: ") and printed.err.count("\n") == 1


# The stamp.


def write_stamp(environment, kind):
    stamp = {
        "fingerprint": environment.fingerprint(),
        "detectron2": kind,
        "extension": environment.extension(),
    }
    Path(environment.stamp).write_text(json.dumps(stamp))


def test_nothing_to_do_after_a_stamp(setup_env, checkout):
    environment = setup_env.Environment(str(checkout))
    assert not environment.is_done("auto")
    write_stamp(environment, "wheel")
    assert environment.is_done("auto")
    assert not environment.is_done("source")
    for kind in ("source", "existing"):
        write_stamp(environment, kind)
        assert environment.is_done("auto") and environment.is_done("source")


def test_stamp_ends_with_what_it_rests_on(setup_env, checkout):
    environment = setup_env.Environment(str(checkout))
    write_stamp(environment, "wheel")
    moved = checkout.rename(checkout.parent / "moved")
    assert not setup_env.Environment(str(moved)).is_done("auto")
    moved.rename(checkout)
    assert environment.is_done("auto")
    with open(checkout / "requirements-detectron2.txt", "a") as stream:
        stream.write("# changed\n")
    assert not environment.is_done("auto")
    write_stamp(environment, "wheel")
    Path(environment.python).unlink()
    assert not environment.is_done("auto")


def test_stamp_ends_with_the_native_operators(setup_env, checkout, monkeypatch):
    environment = setup_env.Environment(str(checkout))
    built = checkout / "aff_seg" / "_C.so"
    built.parent.mkdir()
    built.touch()
    (checkout / "csrc" / "cpu").mkdir(parents=True)
    source = checkout / "csrc" / "cpu" / "op.cpp"
    source.touch()
    write_stamp(environment, "wheel")
    assert environment.is_done("auto")
    built.unlink()
    assert not environment.is_done("auto")
    built.touch()
    source.write_text("// changed")
    assert not environment.is_done("auto")
    write_stamp(environment, "wheel")
    monkeypatch.setenv("AFF_SEG_BUILD", "portable")
    assert not setup_env.Environment(str(checkout)).is_done("auto")


def test_native_operators_are_built_as_last_time(recorded, setup_env, checkout, monkeypatch):
    stale = checkout / "aff_seg" / "_C.so"
    stale.parent.mkdir()
    stale.touch()
    monkeypatch.setenv("AFF_SEG_BUILD", "portable")
    environment, _ = recorded({"file": None, "owner": None})
    environment.make("auto")
    assert not stale.exists()
    monkeypatch.delenv("AFF_SEG_BUILD")
    assert setup_env.Environment(str(checkout)).build["AFF_SEG_BUILD"] == "portable"
    assert setup_env.Environment(str(checkout)).is_done("auto")
    monkeypatch.setenv("AFF_SEG_BUILD", "native")
    assert not setup_env.Environment(str(checkout)).is_done("auto")
    monkeypatch.delenv("AFF_SEG_BUILD")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6")
    assert not setup_env.Environment(str(checkout)).is_done("auto")


def test_an_unknown_build_is_refused_and_not_remembered(setup_env, checks, checkout, monkeypatch):
    monkeypatch.setenv("AFF_SEG_BUILD", "fast")
    with pytest.raises(checks.SetupError, match="one of native, portable, none, got 'fast'"):
        setup_env.Environment(str(checkout)).make("auto")
    monkeypatch.delenv("AFF_SEG_BUILD")
    assert setup_env.Environment(str(checkout)).build["AFF_SEG_BUILD"] == "native"


class Recorder:
    """Stands for the commands of an environment: answers questions, notes what would be run."""

    def __init__(self, environment, detectron2, failing=None):
        self.commands = []
        self.failing = failing
        packages = Path(environment.path, "packages")
        packages.mkdir()
        self.about = {
            "version": list(sys.version_info[:2]),
            "base": sys.base_prefix,
            "packages": str(packages),
            "pip": True,
            "torch": True,
            "panopticapi": True,
        }
        self.detectron2 = detectron2

    def ask(self, code, python=None):
        if "detectron2" in code and "owners" in code:
            return self.detectron2
        return ["torch==2.5.0", "numpy==1.24.0"] if "kept" in code else dict(self.about)

    def run(self, title, command, cwd=None):
        if self.failing and self.failing in title:
            raise RuntimeError(title)
        self.commands.append(" ".join(command))


@pytest.fixture
def recorded(setup_env, checkout, monkeypatch):
    def record(detectron2, failing=None):
        environment = setup_env.Environment(str(checkout))
        Path(environment.scratch).mkdir()
        recorder = Recorder(environment, detectron2, failing)
        monkeypatch.setattr(environment, "ask", recorder.ask)
        monkeypatch.setattr(environment, "run", recorder.run)
        monkeypatch.setattr(environment, "mend", lambda packages: None)
        monkeypatch.setattr(environment, "install_detectron2_wheel", lambda packages: "wheel")
        monkeypatch.setattr(setup_env, "check_disk", lambda folder, wanted: None)
        return environment, recorder

    return record


def test_pinned_packages_are_installed(recorded):
    environment, recorder = recorded({"file": None, "owner": None})
    environment.make("auto")
    assert any("-r requirements.txt" in command for command in recorder.commands)
    assert recorder.commands[-2].endswith("--no-build-isolation --no-deps -e .")
    assert environment.is_done("auto")


def test_an_interrupted_run_leaves_no_stamp(recorded):
    environment, _ = recorded({"file": None, "owner": None}, failing="everything imports")
    write_stamp(environment, "wheel")
    with pytest.raises(RuntimeError):
        environment.make("auto")
    assert not environment.is_done("auto")


@pytest.mark.parametrize("shared", [True, False])
def test_without_a_network_a_torch_at_hand_stays(recorded, monkeypatch, tmp_path, shared):
    environment, recorder = recorded({"file": None, "owner": None})
    environment.wheels = str(tmp_path)
    monkeypatch.setattr(environment, "is_shared", lambda: shared)
    environment.make("auto")
    (used,) = (c.split("-r ")[1] for c in recorder.commands if "-r " in c)
    pins = Path(environment.root, used).read_text()
    assert "numpy==" in pins and ("torch==" in pins) is not shared


def test_a_folder_without_wheels_is_refused(setup_env, tmp_path, capsys):
    assert setup_env.main(["--wheels", str(tmp_path)]) == 1
    assert f"there are no wheels in {tmp_path}: make them" in capsys.readouterr().err


def test_an_existing_detectron2_stays_with_its_torch(recorded):
    environment, recorder = recorded({"file": "/opt/detectron2/__init__.py", "owner": "detectron2"})
    environment.make("auto")
    installs = [command for command in recorder.commands if " pip install" in command]
    assert installs and all(f"-c {environment.path}/kept.txt" in command for command in installs)
    assert not any("-r requirements.txt" in command for command in installs)
    assert Path(environment.path, "kept.txt").read_text() == "torch==2.5.0\nnumpy==1.24.0\n"
    assert environment.is_done("source")


@pytest.mark.parametrize(
    ("inside", "owner", "mark", "kind"),
    [
        (True, "sal-detectron2", False, "wheel"),
        (True, None, False, None),  # cut off between the package and its metadata
        (True, "detectron2", True, "source"),
        (True, "detectron2", False, "existing"),
        (False, "detectron2", True, "existing"),
        (False, "sal-detectron2", False, "existing"),
        (False, None, False, "existing"),
    ],
)
def test_kinds_of_detectron2(recorded, inside, owner, mark, kind):
    environment, recorder = recorded(None)
    folder = recorder.about["packages"] if inside else "/opt/python"
    recorder.detectron2 = {"file": f"{folder}/detectron2/__init__.py", "owner": owner}
    if mark:
        Path(environment.source_mark).touch()
    assert environment.detectron2_kind(recorder.about) == kind


def test_the_lock_keeps_others_out(setup_env, checkout):
    with setup_env.locked(str(checkout), print), open(checkout / "requirements.txt", "a") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_failed_command_is_explained_from_its_output(setup_env, checks, checkout, capsys):
    environment = setup_env.Environment(str(checkout))
    environment.run("counting", [sys.executable, "-c", "print('one')"])
    with pytest.raises(checks.SetupError, match="counting on failed.*error: three"):
        code = "import sys; print('error: three'); sys.exit(1)"
        environment.run("counting on", [sys.executable, "-c", code])
    assert "one" in Path(environment.log).read_text()
    assert "counting" in capsys.readouterr().out


# Repair.


def make_package(packages, name, *, record=True):
    """A package of one module, one script outside, and its metadata folder."""
    (packages / name).mkdir(parents=True)
    (packages / name / "module.py").write_text("x = 1\n")
    metadata = packages / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Name: {name}\n")
    rows = [[f"{name}/module.py", "", "6"], ["../../bin/script", "", "99"]]
    rows += [[f"{name}/__pycache__/module.pyc", "", "5"], [f"{metadata.name}/RECORD", "", ""]]
    if record:
        with open(metadata / "RECORD", "w", newline="") as stream:
            csv.writer(stream).writerows(rows)
    return metadata


def test_incomplete_packages(repair, tmp_path):
    make_package(tmp_path, "whole")
    unfinished = make_package(tmp_path, "unfinished", record=False)
    shortened = make_package(tmp_path, "shortened")
    (tmp_path / "shortened" / "module.py").write_text("x")
    lost = make_package(tmp_path, "lost")
    (tmp_path / "lost" / "module.py").unlink()
    expected = sorted(str(path) for path in (lost, shortened, unfinished))
    assert repair.incomplete_packages(str(tmp_path)) == expected


def test_wheel_of_detectron2_is_cleaned_and_moved(setup_env, repair, checkout, monkeypatch):
    environment = setup_env.Environment(str(checkout))
    packages = checkout / "packages"
    (packages / "detectron2").mkdir(parents=True)
    (packages / "detectron2" / "left.py").write_text("from an interrupted run")

    def unpack(title, *arguments):
        aside = Path(arguments[arguments.index("--target") + 1])
        (aside / "tools").mkdir(parents=True)
        metadata = make_package(aside, "detectron2")
        (aside / "detectron2" / "_C.cpython-310.so").write_text("compiled")
        with open(metadata / "RECORD", "a", newline="") as stream:
            csv.writer(stream).writerow(["detectron2/_C.cpython-310.so", "", "8"])

    monkeypatch.setattr(environment, "pip", unpack)
    assert environment.install_detectron2_wheel(str(packages)) == "wheel"
    assert [path.name for path in (packages / "detectron2").iterdir()] == ["module.py"]
    assert not (packages / "tools").exists()
    assert repair.incomplete_packages(str(packages)) == []


@pytest.mark.parametrize("name", ["moved", "moved to a path with spaces"])
def test_scripts_of_a_moved_environment_run_again(repair, tmp_path, name):
    old = tmp_path / "old" / ".venv"
    (old / "bin").mkdir(parents=True)
    (old / "bin" / "python").symlink_to(sys.executable)
    (old / "bin" / "activate").write_text(f'VIRTUAL_ENV="{old}"\nexport VIRTUAL_ENV\n')
    (old / "pyvenv.cfg").write_text(f"command = python -m venv {old}\n")
    script = old / "bin" / "script"
    script.write_text(f"#!{old}/bin/python\nimport sys\nprint(sys.argv[1])\n")
    script.chmod(0o755)
    assert repair.relocate(str(old)) is None

    new = (tmp_path / "old").rename(tmp_path / name) / ".venv"
    assert repair.relocate(str(new)) == str(old)
    assert repair.relocate(str(new)) is None
    assert str(old) not in (new / "pyvenv.cfg").read_text()
    done = subprocess.run([new / "bin" / "script", "here"], capture_output=True, text=True)
    assert done.stdout == "here\n"


# Requirements.


def packaging_arguments(monkeypatch, importable):
    """What setup.py hands to setuptools where just the modules ``importable`` are there."""
    captured = {}
    monkeypatch.setattr(setuptools, "setup", captured.update)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name if name in importable else None
    )
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    return captured


@pytest.mark.parametrize(
    ("module", "requirement"),
    [("cv2", "opencv-python-headless"), ("panopticapi", "panopticapi-lite")],
)
def test_any_provider_of_a_module_will_do(monkeypatch, module, requirement):
    for importable, wanted in (({module}, False), (set(), True)):
        names = packaging_arguments(monkeypatch, importable)["install_requires"]
        assert any(name.startswith(requirement) for name in names) is wanted


def test_no_native_operators_without_what_they_need(monkeypatch, capfd):
    assert "ext_modules" not in packaging_arguments(monkeypatch, set())
    assert "without torch (add --no-build-isolation" in capfd.readouterr().err
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "ext_modules" not in packaging_arguments(monkeypatch, {"torch"})
    assert "without a C++ compiler there are no native operators" in capfd.readouterr().err


def test_native_operators_are_built_as_asked(monkeypatch):
    monkeypatch.setenv("AFF_SEG_BUILD", "none")
    assert "ext_modules" not in packaging_arguments(monkeypatch, {"torch"})
    monkeypatch.setenv("AFF_SEG_BUILD", "fast")
    with pytest.raises(SystemExit, match="AFF_SEG_BUILD must be one of native"):
        packaging_arguments(monkeypatch, {"torch"})


def test_cuda_kernels_only_where_they_can_be_built(monkeypatch, capfd, tmp_path):
    monkeypatch.setattr(torch.version, "cuda", "11.8")
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho Cuda compilation tools, release 12.4, V12.4.1")
    nvcc.chmod(0o755)
    library = tmp_path / "lib64" / "libcudart.so"
    library.parent.mkdir()
    library.touch()
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    empty = str(tmp_path / "bin")
    for home, fault in ((str(tmp_path), f"{nvcc} is not of CUDA 11"), (empty, "there is no CUDA")):
        monkeypatch.setenv("CUDA_HOME", home)
        monkeypatch.delenv("FORCE_CUDA", raising=False)
        (extension,) = packaging_arguments(monkeypatch, {"torch"})["ext_modules"]
        assert not any(source.endswith(".cu") for source in extension.sources)
        assert fault in capfd.readouterr().err
        monkeypatch.setenv("FORCE_CUDA", "1")
        with pytest.raises(SystemExit, match="FORCE_CUDA=1, but"):
            packaging_arguments(monkeypatch, {"torch"})
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", "12.1")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    (extension,) = packaging_arguments(monkeypatch, {"torch"})["ext_modules"]
    assert any(source.endswith("knn.cu") for source in extension.sources)
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "8.0 8.6 8.9 9.0+PTX"
    monkeypatch.setenv("FORCE_CUDA", "0")
    (extension,) = packaging_arguments(monkeypatch, {"torch"})["ext_modules"]
    assert not any(source.endswith(".cu") for source in extension.sources)
    monkeypatch.setenv("FORCE_CUDA", "")
    told = "#!/bin/sh\necho release 12.4,"
    nvcc.write_text(f"{told}\ntest $1 = --version || {{ echo error: bad host >&2; exit 1; }}")
    (extension,) = packaging_arguments(monkeypatch, {"torch"})["ext_modules"]
    assert not any(source.endswith(".cu") for source in extension.sources)
    assert f"{nvcc} does not compile (error: bad host), so that" in capfd.readouterr().err
    nvcc.write_text(told)
    library.unlink()
    packaging_arguments(monkeypatch, {"torch"})
    assert "there is no CUDA toolkit" in capfd.readouterr().err
    monkeypatch.setenv("FORCE_CUDA", "1")
    monkeypatch.setenv("AFF_SEG_BUILD", "none")
    with pytest.raises(SystemExit, match="FORCE_CUDA=1, but with AFF_SEG_BUILD=none no CUDA"):
        packaging_arguments(monkeypatch, {"torch"})


@pytest.mark.parametrize(
    ("asked", "kept", "old"),
    [
        ("", ["8.0", "8.6", "8.9", "9.0+PTX"], []),
        ("7.5;8.0 9.0a+PTX", ["8.0", "9.0a+PTX"], ["7.5"]),
        ("6.1+PTX Turing", [], ["6.1+PTX", "Turing"]),
        ("Ampere 12.0 native", ["Ampere", "12.0", "native"], []),
        ("Volta+Tegra;10.0", ["10.0"], ["Volta+Tegra"]),
    ],
)
def test_old_gpus_are_left_out(monkeypatch, asked, kept, old):
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.setenv("AFF_SEG_BUILD", "none")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    assert runpy.run_path(str(ROOT / "setup.py"))["architectures"]() == (kept, old)


def test_pins_satisfy_setup_py(monkeypatch):
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and line[0] not in "#-"]
    assert all(str(pin.specifier).startswith("==") for pin in pins)
    pinned = {pin.name.lower(): str(pin.specifier)[2:] for pin in pins}
    arguments = packaging_arguments(monkeypatch, set())
    extras = arguments["extras_require"]
    for text in (*arguments["install_requires"], *extras["dev"], *extras["slurm"]):
        requirement = Requirement(text)
        assert requirement.specifier.contains(pinned[requirement.name]), text
    constraints = (ROOT / "constraints.txt").read_text()
    for text in extras["bench"]:
        assert f"\n{Requirement(text).name}==" in constraints
    assert not {"torch", "torchvision", "detectron2"} & set(
        Requirement(text).name for text in arguments["install_requires"]
    )
