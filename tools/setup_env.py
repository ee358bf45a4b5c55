"""Make `.venv` with everything the project needs; run by `make setup`.

A stamp, written last, says that all is done. Without it each installed package is checked against
its own list of files and each step runs again, so that whatever an interrupted run left is mended.

An existing Detectron2 is used as it is, together with the torch beside it: one that was put into
`.venv`, or one that the Python running this script imports (a cluster's container, say). Then
`.venv` only gets what is missing.

Without a network, --wheels names a folder of packages to install from (tools/collect_wheels.py
makes one). If it holds no torch, that of the Python running this script is used.

Standard library only, and readable by Python 3.6, so that an old Python gets its sentence.
"""

import argparse
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import sys
import sysconfig

from setup_env_checks import (
    SetupError,
    check_disk,
    check_python,
    check_source_build,
    check_venv_module,
    check_wheels,
    find_compiler,
    find_nvcc,
)
from setup_env_commands import Commands
from setup_env_repair import drop_absent_files, incomplete_packages, relocate

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
SOURCE_URL = "https://github.com/facebookresearch/detectron2"
SOURCE_COMMIT = "a59f05630a8f205756064244bf5beb8661f96180"
REQUIREMENTS = ("requirements.txt", "constraints.txt", "requirements-detectron2.txt")
STAMPED = (*REQUIREMENTS, "setup.py", "pyproject.toml")
SOURCES = "csrc"
BUILDS = ("native", "portable", "none")
# Environment variables that say how the native operators are built, and what they are if not set.
CHOICES = {"AFF_SEG_BUILD": "native", "FORCE_CUDA": "", "TORCH_CUDA_ARCH_LIST": ""}
# Free bytes wanted: for the packages, their downloads and pip's cache; for a few small packages.
FULL_INSTALL, SMALL_INSTALL = 10 << 30, 1 << 30

# Snippets that an interpreter runs to tell, in JSON, about itself ...
ABOUT = """
import importlib.util, json, os, sys, sysconfig
packages = sysconfig.get_path("purelib")
print(json.dumps({
    "version": list(sys.version_info[:2]),
    "base": sys.base_prefix,
    "packages": packages,
    "pip": any(name.startswith("pip-") for name in os.listdir(packages)),
    "torch": importlib.util.find_spec("torch") is not None,
    "panopticapi": importlib.util.find_spec("panopticapi") is not None,
}))
"""
# ... about its Detectron2: the file it lies in and the distribution that installed it ...
ABOUT_DETECTRON2 = """
import importlib.metadata, importlib.util, json
spec = importlib.util.find_spec("detectron2")
names = {dist.metadata["Name"] for dist in importlib.metadata.distributions()}
owners = [name for name in ("sal-detectron2", "detectron2") if name in names]
print(json.dumps({"file": spec and spec.origin, "owner": owners[0] if owners else None}))
"""
# ... whether it imports ...
IMPORT_DETECTRON2 = "import torch, detectron2; print(1)"
IMPORT_TORCH = "import torch, torchvision; print(1)"
# ... and about the packages that an existing Detectron2 was built with, which stay as they are.
ABOUT_KEPT = """
import importlib.metadata, json, re
kept = re.compile("(torch|torchvision|triton|numpy|opencv.*|detectron2)$", re.IGNORECASE)
pins = {}
for dist in importlib.metadata.distributions():
    if kept.match(dist.metadata["Name"] or ""):
        pins.setdefault(dist.metadata["Name"], dist.version)  # the first found is what imports
print(json.dumps(["==".join(pin) for pin in pins.items()]))
"""
VERIFY = """
import importlib.util
import torch, torchvision
import cityscapesscripts, cv2, detectron2, fvcore, panopticapi, pycocotools.mask, scipy
assert importlib.util.find_spec("aff_seg"), "error: aff_seg is not installed"
"""


class Environment(Commands):
    """The `.venv` of one checkout, and the steps that make it whole."""

    def __init__(self, root, wheels=None):
        super().__init__(root)
        self.wheels = wheels
        self.stamp = os.path.join(self.path, "setup-stamp.json")
        # Its presence tells a Detectron2 that we built from one that somebody else did.
        self.source_mark = os.path.join(self.path, "detectron2-source")
        # How the native operators are built: as asked, else as last time.
        self.build_mark = os.path.join(self.path, "native-build.json")
        last = self.last_build()
        # A variable that is set, but empty, takes a choice back.
        asked = {name: os.environ.get(name, last[name]) for name in CHOICES}
        self.build = {name: asked[name] or default for name, default in CHOICES.items()}

    def is_done(self, switch):
        """Whether an earlier run ended well and nothing it rested on has changed since."""
        if not os.access(self.python, os.X_OK) or not os.path.isfile(self.stamp):
            return False
        with open(self.stamp, encoding="utf-8") as stream:
            stamp = json.load(stream)
        served = switch == "auto" or stamp["detectron2"] != "wheel"
        whole = stamp.get("extension") == self.extension()
        return served and whole and stamp["fingerprint"] == self.fingerprint()

    def last_build(self):
        if not os.path.isfile(self.build_mark):
            return CHOICES
        with open(self.build_mark, encoding="utf-8") as stream:
            return json.load(stream)

    def extension(self):
        """Name of the built native operators' file, or None."""
        found = glob.glob(os.path.join(self.root, "aff_seg", "_C.*"))
        return os.path.basename(found[0]) if found else None

    def fingerprint(self):
        """Digest of all that `.venv` depends on."""
        facts = [self.root, sys.base_prefix, "{}.{}".format(*sys.version_info), SOURCE_COMMIT]
        facts += [str(find_compiler()), str(find_nvcc()), json.dumps(self.build)]
        digest = hashlib.sha256("\n".join(facts).encode())
        names = [os.path.join(self.root, name) for name in STAMPED]
        for folder, _, files in os.walk(os.path.join(self.root, SOURCES)):
            names += [os.path.join(folder, name) for name in files]
        for name in sorted(names):
            with open(name, "rb") as stream:
                digest.update(stream.read())
        return digest.hexdigest()

    def make(self, switch):
        """Bring `.venv` from any state to a complete one; ``switch`` is "auto" or "source"."""
        build = self.build["AFF_SEG_BUILD"]
        if build not in BUILDS:
            raise SetupError(
                f"AFF_SEG_BUILD must be one of {', '.join(BUILDS)}, got {build!r}: "
                "set it to one of these, or not at all."
            )
        for path in (self.stamp, self.log):
            if os.path.exists(path):
                os.remove(path)
        about = self.ensure_python()
        with open(self.build_mark, "w", encoding="utf-8") as stream:
            json.dump(self.build, stream)
        os.environ.update((name, value) for name, value in self.build.items() if value)
        # One that is not built again must not stay: it would run.
        for extension in glob.glob(os.path.join(self.root, "aff_seg", "_C.*")):
            os.remove(extension)
        kind = self.detectron2_kind(about)
        if kind == "existing":
            check_disk(self.root, SMALL_INSTALL)
            self.install_beside_existing(about)
        else:
            build = switch == "source" and kind != "source"
            if build:
                check_source_build()
                self.run("asking for Detectron2's source", ["git", "ls-remote", SOURCE_URL, "HEAD"])
            check_disk(self.root, SMALL_INSTALL if about["torch"] else FULL_INSTALL)
            self.install_pinned(about["torch"])
            if build:
                kind = self.install_detectron2_source()
            elif kind is None:
                kind = self.install_detectron2_wheel(about["packages"])
            self.pip(
                "building the native operators and installing aff_seg itself",
                *["--no-build-isolation", "--no-deps", "-e", "."],
            )
        self.run("checking that everything imports", [self.python, "-c", VERIFY], cwd="/")
        shutil.rmtree(self.scratch)
        with open(self.stamp + ".new", "w", encoding="utf-8") as stream:
            stamp = {
                "fingerprint": self.fingerprint(),
                "detectron2": kind,
                "extension": self.extension(),
            }
            json.dump(stamp, stream)
        os.replace(self.stamp + ".new", self.stamp)
        if stamp["extension"] is None:
            self.say(
                "the native operators are not built, so that PyTorch references run, several "
                "times slower; with a C++ compiler and Python's headers, run `make setup` again"
            )

    # What is there.

    def detectron2_kind(self, about):
        """The Detectron2 of `.venv`: "wheel" or "source" (both ours), "existing", or None."""
        found = self.ask(ABOUT_DETECTRON2)
        if not found["file"]:
            return None
        if not found["file"].startswith(about["packages"] + os.sep):
            return "existing"
        if found["owner"] is None:
            return None  # the wheel, cut off before its metadata was moved in
        if found["owner"] == "sal-detectron2":
            return "wheel"
        return "source" if os.path.exists(self.source_mark) else "existing"

    # Steps.

    def ensure_python(self):
        """Create or mend `.venv` until its Python and pip run; return its answer to ABOUT."""
        about = self.ask(ABOUT)
        wanted = [list(sys.version_info[:2]), sys.base_prefix]
        if about is not None and [about["version"], about["base"]] == wanted:
            self.mend(about["packages"])
        elif os.path.lexists(self.path):
            self.say("removing .venv, which does not run or was made with another Python")
            shutil.rmtree(self.path)
        about = self.ask(ABOUT)
        if about is None or not about["pip"]:
            self.create()
            about = self.ask(ABOUT)
        return about

    def mend(self, packages):
        before = relocate(self.path)
        if before:
            self.say(f"this .venv was made at {before}: adapting it")
        shutil.rmtree(self.scratch, ignore_errors=True)
        for metadata in incomplete_packages(packages):
            self.say(f"incomplete, to be installed again: {os.path.basename(metadata)[:-10]}")
            shutil.rmtree(metadata)

    def create(self):
        own = os.path.realpath(sys.prefix) == os.path.realpath(self.path)
        check_venv_module(sys.version_info)
        shared = not own and (self.base_has_detectron2() or self.base_lends_torch())
        base = sys._base_executable if own else sys.executable
        options = ["--system-site-packages"] if shared else []
        self.run("creating .venv", [base, "-m", "venv", *options, self.path])
        if shared and sys.prefix != sys.base_prefix:
            # Made from an environment, it sees the Python below both, but not the first.
            link = os.path.join(self.ask(ABOUT)["packages"], "made_from.pth")
            with open(link, "w", encoding="utf-8") as stream:
                stream.write(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")

    def base_has_detectron2(self):
        """Whether the Python running this imports torch and Detectron2."""
        found = self.ask(ABOUT_DETECTRON2, sys.executable)
        return bool(found and found["file"]) and (self.ask(IMPORT_DETECTRON2, sys.executable) == 1)

    def base_lends_torch(self):
        """Whether the Python running this has the torch that the folder of wheels has not."""
        if not self.wheels or glob.glob(os.path.join(self.wheels, "torch-*.whl")):
            return False
        if self.ask(IMPORT_TORCH, sys.executable) != 1:
            raise SetupError(
                f"neither {self.wheels} nor {sys.executable} has torch and torchvision: name a "
                "Python that has, as in PYTHON=python3, or collect them with `--torch`."
            )
        return True

    def requirements(self):
        """The file of pinned packages, without torch where that of the system is used."""
        if not (self.wheels and self.is_shared()):
            return "requirements.txt"
        with open(os.path.join(self.root, "requirements.txt"), encoding="utf-8") as stream:
            lines = [line for line in stream if not re.match("torch|-c ", line)]
        kept = os.path.join(self.path, "requirements.txt")
        with open(kept, "w", encoding="utf-8") as stream:
            stream.writelines(lines)
        return kept

    def install_pinned(self, has_torch):
        # Small packages first and few retries: a missing network is noticed in seconds.
        self.pip(
            "installing build tools",
            *["--retries", "1", "--timeout", "15", "-c", "requirements.txt", "setuptools", "wheel"],
        )
        self.pip(
            "installing the pinned packages" + ("" if has_torch else " (3 GB to download)"),
            *["--no-build-isolation", "-r", self.requirements()],
        )

    def install_beside_existing(self, about):
        """Add what is missing and leave torch, Detectron2 and what they rest on as they are."""
        kept = os.path.join(self.path, "kept.txt")
        with open(kept, "w", encoding="utf-8") as stream:
            stream.write("\n".join(self.ask(ABOUT_KEPT)) + "\n")
        self.say("an existing Detectron2 is used as it is, with the torch beside it")
        self.pip("installing build tools", "-c", kept, "setuptools<82", "wheel", "ninja")
        if not about["panopticapi"]:
            # It asks for numpy below 2, without needing it.
            pin = ["-c", "requirements.txt", "panopticapi-lite"]
            self.pip("installing panopticapi", "--no-deps", *pin)
        own = ["--no-build-isolation", "-e", ".[dev,slurm]"]
        self.pip("installing what is missing", "-c", kept, *own)

    def install_detectron2_wheel(self, packages):
        """Unpack the wheel aside, clean it, and move it into place, metadata last."""
        aside = os.path.join(self.scratch, "detectron2")
        shutil.rmtree(aside, ignore_errors=True)
        # Its file name asks for CPython 3.10; without the compiled module any Python does.
        self.pip(
            "installing Detectron2 (the hash-pinned wheel)",
            *["--no-deps", "--target", aside, "--only-binary=:all:", "--python-version", "3.10"],
            *["--implementation", "cp", "--abi", "none", "--platform", "any"],
            *["-r", "requirements-detectron2.txt"],
        )
        package = os.path.join(aside, "detectron2")
        for name in os.listdir(package):
            if name.startswith("_C."):
                os.remove(os.path.join(package, name))
        shutil.rmtree(os.path.join(aside, "tools"))
        (metadata,) = (name for name in os.listdir(aside) if name.endswith(".dist-info"))
        drop_absent_files(os.path.join(aside, metadata))
        for name in ("detectron2", metadata):
            shutil.rmtree(os.path.join(packages, name), ignore_errors=True)
            os.rename(os.path.join(aside, name), os.path.join(packages, name))
        return "wheel"

    def install_detectron2_source(self):
        """Build the official source, then put it in the place of the wheel, if that is there."""
        aside = os.path.join(self.scratch, "wheels")
        shutil.rmtree(aside, ignore_errors=True)
        build = ["wheel", "--no-deps", "--no-build-isolation", "-w", aside]
        source = f"git+{SOURCE_URL}@{SOURCE_COMMIT}"
        pip = [self.python, "-m", "pip"]
        self.run("building Detectron2 from source (minutes)", [*pip, *build, source])
        self.run("removing the wheel of Detectron2", [*pip, "uninstall", "-y", "sal-detectron2"])
        with open(self.source_mark, "w", encoding="utf-8") as stream:
            stream.write(SOURCE_COMMIT + "\n")
        (wheel,) = os.listdir(aside)
        self.pip("installing Detectron2", "--no-deps", os.path.join(aside, wheel))
        return "source"


def locked(root, say):
    """Wait until no other `make setup` works in ``root``; return the open lock."""
    lock = open(os.path.join(root, "requirements.txt"), "a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another `make setup` is at work here: waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--detectron2",
        choices=["auto", "source"],
        default="auto",
        help="auto: an existing one, else the wheel; source: build the official source",
    )
    parser.add_argument("--wheels", help="folder to install packages from, without a network")
    options = parser.parse_args(arguments)
    switch, wheels = options.detectron2, options.wheels and os.path.abspath(options.wheels)
    try:
        check_python(sys.version_info, sys.executable)
        if wheels:
            check_wheels(wheels)
        environment = Environment(ROOT, wheels)
        if environment.is_done(switch):
            return 0
        environment.lock = locked(ROOT, environment.say)
        if environment.is_done(switch):
            return 0
        environment.make(switch)
    except (SetupError, OSError) as error:
        print(f"make setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("make setup: stopped; `make setup` goes on from here.", file=sys.stderr)
        return 130
    if find_compiler() is None:
        environment.say("no C++ compiler here: the PyTorch reference operators will be used")
    environment.say("done, .venv is ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
