"""What can stand in the way of `make setup`, each thing said in one sentence.

Standard library only, and readable by Python 3.6, so that an old Python gets its sentence.
"""

import glob
import importlib.util
import os
import re
import shutil

OLDEST, NEWEST = (3, 10), (3, 12)
NO_NETWORK = re.compile(
    r"connection broken|Max retries exceeded|Temporary failure in name resolution|ProxyError"
    r"|NewConnectionError|Network is unreachable|Read timed out|Could not resolve host"
    r"|unable to access|Failed to connect"
)


class SetupError(Exception):
    """What is wrong and what to do about it, in one sentence."""


def check_python(version, executable):
    """Raise SetupError unless ``version`` (major, minor, ...) is one the pins hold for."""
    version = tuple(version[:2])
    if not OLDEST <= version <= NEWEST:
        fault = "old" if version < OLDEST else "new"
        raise SetupError(
            f"{executable} is Python {version[0]}.{version[1]}, which is too {fault}: install "
            "Python 3.10, 3.11 or 3.12 and name it, as in `make setup PYTHON=python3.11`."
        )


def check_venv_module(version):
    """Raise SetupError where Python came without the parts that make environments."""
    if not all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        raise SetupError(
            "this Python lacks its venv module, which Debian and Ubuntu ship apart: "
            f"`sudo apt install python{version[0]}.{version[1]}-venv`, then `make setup` again."
        )


def check_disk(folder, wanted):
    """Raise SetupError unless ``wanted`` bytes are free where ``folder`` lies."""
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise SetupError(
            f"the disk is nearly full: {wanted / 2**30:.0f} GB are needed and "
            f"{free / 2**30:.1f} GB are free at {folder}; make room, then `make setup` again."
        )


def check_wheels(folder):
    """Raise SetupError unless ``folder`` holds wheels."""
    if not glob.glob(os.path.join(folder, "*.whl")):
        raise SetupError(
            f"there are no wheels in {folder}: make them where there is a network with "
            "`python tools/collect_wheels.py FOLDER`, and bring the folder here."
        )


def find_compiler():
    """Path of a C++ compiler, or None."""
    names = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    return next(filter(None, (shutil.which(name) for name in names if name)), None)


def find_nvcc():
    """Path of CUDA's compiler, or None, where torch looks for it."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        return shutil.which("nvcc", path=os.path.join(home, "bin"))
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def check_source_build():
    """Raise SetupError where Detectron2 cannot be built from its source."""
    for tool, found in (("git", shutil.which("git")), ("a C++ compiler", find_compiler())):
        if not found:
            raise SetupError(
                f"DETECTRON2=source needs {tool}: install it, or run plain `make setup`, which "
                "does without."
            )


def explain_failure(title, output, log):
    """The sentence for a command that failed.

    Args:
        title: what the command was doing, as "installing the project".
        output: all it printed.
        log: where the reader finds that.
    """
    if NO_NETWORK.search(output):
        if "github.com" in output:
            place, advice = "github.com", "connect, or run plain `make setup`, which needs no git"
        else:
            place = "the package index"
            advice = "connect, or set PIP_INDEX_URL to an index you can reach, and run it again"
        return f"no network: {place} could not be reached while {title}; {advice} (details: {log})."
    if "No space left on device" in output:
        return f"the disk is full: make room, then `make setup` again (details: {log})."
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no output"]
    errors = [line for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)]
    return f"{title} failed, saying {(errors or lines)[-1][:160]!r} (details: {log})."
