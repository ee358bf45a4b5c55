"""What this installation consists of, and what is wrong with it.

``python -m aff_seg.doctor`` prints versions, device, compilers, operators and datasets, then each
fault with its remedy; its exit status is 1 if one of them keeps the project from running. It runs
where torch or Detectron2 are missing or broken, and so imports nothing but the standard library
at the top.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

# What the project imports; the names of modules.
MODULES = (
    "torch",
    "torchvision",
    "detectron2",
    "numpy",
    "cv2",
    "fvcore",
    "pycocotools",
    "cityscapesscripts",
    "panopticapi",
    "scipy",
    "PIL",
    "matplotlib",
    "tensorboard",
    "safetensors",
    "iopath",
    "tqdm",
)
# Submodules to import in their place: the packages alone load nothing of theirs.
_PROBES = {"pycocotools": "pycocotools.mask", "panopticapi": "panopticapi.evaluation"}
# What each dataset needs below the dataset root.
DATASETS = {
    "cityscapes": (
        "cityscapes/leftImg8bit",
        "cityscapes/gtFine",
        "cityscapes/gtFine/cityscapes_panoptic_train.json",
        "cityscapes/gtFine/cityscapes_panoptic_val.json",
    ),
    "ade20k": (
        "ADEChallengeData2016/images",
        "ADEChallengeData2016/annotations_detectron2",
    ),
    "coco": (
        "coco/train2017",
        "coco/val2017",
        "coco/annotations/instances_train2017.json",
        "coco/annotations/instances_val2017.json",
    ),
}


@dataclass(frozen=True)
class Fault:
    """Something wrong, in one sentence with its remedy.

    Attributes:
        text: the sentence.
        fatal: whether the project cannot run with it.
    """

    text: str
    fatal: bool


def find_versions() -> dict[str, str | None]:
    """Version of each of MODULES and of setuptools by module name; None where it is absent."""
    owners = importlib.metadata.packages_distributions()
    versions = {}
    for module in (*MODULES, "setuptools"):
        if module in owners:
            versions[module] = importlib.metadata.version(owners[module][0])
        else:
            versions[module] = "unknown" if _is_importable(module) else None
    return versions


def _is_importable(module: str) -> bool:
    # A mere folder of that name, as a clone beside us, has a spec too, but no origin.
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


def check_python(version: tuple[int, ...]) -> list[Fault]:
    """Faults of the running Python, given its version."""
    if (3, 10) <= version[:2] <= (3, 12):
        return []
    text = f"Python {version[0]}.{version[1]} is untried: use 3.10, 3.11 or 3.12."
    return [Fault(text, fatal=version[:2] < (3, 10))]


def check_versions(versions: dict[str, str | None]) -> list[Fault]:
    """Faults known from version numbers alone.

    Args:
        versions: as `find_versions` returns them.
    """
    faults = []
    missing = [module for module in MODULES if versions[module] is None]
    if missing:
        faults.append(Fault(f"missing, run `make setup`: {', '.join(missing)}.", fatal=True))
    numpy, cv2, setuptools = (_release(versions[name]) for name in ("numpy", "cv2", "setuptools"))
    if numpy >= (2,) and (0,) < cv2 < (4, 10):
        text = (
            f"OpenCV {versions['cv2']} was built for numpy 1 and numpy is {versions['numpy']}: "
            "`pip install 'opencv-python-headless>=4.10'`."
        )
        faults.append(Fault(text, fatal=True))
    if versions["setuptools"] is None or setuptools >= (82,):
        text = (
            f"setuptools {versions['setuptools'] or '(missing)'} brings no pkg_resources, which "
            "detectron2.model_zoo imports: `pip install 'setuptools<82'`."
        )
        faults.append(Fault(text, fatal=False))
    return faults


def _release(version: str | None) -> tuple[int, ...]:
    """First two numbers of a version, (4, 10) of "4.10.0.84"; (0,) where there are none."""
    return tuple(int(number) for number in re.findall(r"\d+", version or "")[:2]) or (0,)


def check_imports(modules: tuple[str, ...]) -> list[Fault]:
    """Faults of packages that are there but do not import."""
    faults = []
    for module in modules:
        try:
            importlib.import_module(_PROBES.get(module, module))
        # A broken package may raise anything (OSError for a library, AttributeError for numpy).
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            text = f"{module} does not import ({reason}): remove .venv and run `make setup`."
            faults.append(Fault(text, fatal=True))
    return faults


def check_detectron2(folder: Path) -> list[Fault]:
    """Faults of the Detectron2 whose package lies in ``folder``."""
    files = ("data/datasets/cityscapes.py", "evaluation/cityscapes_evaluation.py")
    paths = [folder / file for file in files if (folder / file).is_file()]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    if not any("deeplearning.projects" in text for text in texts):
        return []
    text = (
        "this Detectron2 is newer than November 2024 and reads Cityscapes instances through a "
        "module that was never published: use the one of `make setup`, or build commit a59f0563."
    )
    return [Fault(text, fatal=False)]


def check_package() -> list[Fault]:
    """Faults that show when another process imports aff_seg whole."""
    done = subprocess.run(
        [sys.executable, "-c", "import aff_seg"], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return []
    reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return [Fault(f"aff_seg does not import ({reason}): run `make setup`.", fatal=True)]


def check_operators(native: bool) -> list[Fault]:
    """Faults of the operators, given whether the native ones run."""
    if native:
        return []
    slow = "the operators run on their PyTorch references, several times slower"
    if os.environ.get("AFF_SEG_OPS") == "reference":
        return [Fault(f"{slow}: AFF_SEG_OPS=reference asks for that.", fatal=False)]
    remedy = "with a C++ compiler and Python's headers, run `make setup`"
    return [Fault(f"{slow}, for the native ones are not built: {remedy}.", fatal=False)]


def check_gpu_operators() -> list[Fault]:
    """Faults of the operators on the GPU, tried there. Needs torch, the package and a GPU."""
    import torch

    from aff_seg import ops

    if "cuda" not in ops.NATIVE_DEVICES:
        text = (
            "on the GPU the operators run on their PyTorch references, many times slower: with "
            f"the CUDA toolkit {torch.version.cuda} (nvcc on the PATH), run `make setup`."
        )
        return [Fault(text, fatal=False)]
    try:
        ops.knn(*torch.zeros(2, 1, 1, 2, device="cuda").unbind(), 1)[0].cpu()
    except RuntimeError as error:
        capability = torch.cuda.get_device_capability()
        own = "{}.{}".format(*capability)
        remedy = f"build them for it with `TORCH_CUDA_ARCH_LIST={own} make setup`."
        if capability < (8, 0):
            remedy = f"they need a compute capability of 8.0, and it has {own}."
        text = f"the operators do not run on the GPU ({str(error).splitlines()[0]}): {remedy}"
        return [Fault(text, fatal=False)]
    return []


def describe_cpu() -> str:
    """Model and usable cores of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model.group(1) if model else platform.machine()}, {cores} usable cores"


def describe_gpus() -> tuple[list[str], list[Fault]]:
    """A line for each GPU, or one that says there is none; and their faults. Needs torch."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    # torch warns of a driver that it cannot use, and of nothing where there is no driver.
    faults = [Fault(f"{str(w.message).splitlines()[0]}", fatal=False) for w in caught]
    if count == 0:
        return ["none usable, so that everything runs on the CPU"], faults
    built = torch.cuda.get_arch_list()
    lines = [f"PyTorch is built for CUDA {torch.version.cuda}: {' '.join(built)}"]
    for index in range(count):
        name, capability = (
            torch.cuda.get_device_name(index),
            torch.cuda.get_device_capability(index),
        )
        lines.append(f"{index}: {name}, capability {capability[0]}.{capability[1]}")
        if not runs_on(capability, built):
            text = (
                f"this PyTorch has no kernels for {name} (sm_{capability[0]}{capability[1]}): "
                "install a build that lists it, or set MODEL.DEVICE cpu."
            )
            faults.append(Fault(text, fatal=False))
    return lines, faults


def runs_on(capability: tuple[int, int], built: list[str]) -> bool:
    """Whether code built for ``built`` ("sm_80", "compute_90", ...) runs on ``capability``."""
    for target in built:
        kind, number = re.fullmatch(r"(\w+)_(\d+)[a-z]?", target).groups()
        major, minor = int(number[:-1]), int(number[-1])
        # Machine code holds within a major version; intermediate code on all later ones.
        if (major, minor) <= capability and (kind == "compute" or major == capability[0]):
            return True
    return False


def describe_tool(names: tuple[str, ...], pattern: str) -> str:
    """Path and version of the first of ``names`` on the PATH."""
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        return "not found"
    output = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(pattern, output)
    return f"{path} {version.group(1) if version else ''}".strip()


def describe_datasets(root: Path) -> dict[str, str]:
    """By dataset, whether it lies below ``root`` and which parts are missing."""
    states = {}
    for name, parts in DATASETS.items():
        missing = [part for part in parts if not (root / part).exists()]
        if not missing:
            states[name] = "found"
        elif len(missing) == len(parts):
            states[name] = "not there"
        else:
            states[name] = f"incomplete, without {', '.join(missing)}"
    return states


def _print(title: str, rows: dict[str, str]) -> None:
    print(title)
    for name, text in rows.items():
        print(f"  {name:<20} {text}")


def main() -> int:
    """Print the report; return the exit status."""
    versions = find_versions()
    faults = check_python(sys.version_info[:3]) + check_versions(versions)
    faults += check_imports(tuple(name for name in MODULES if versions[name]))

    rows = {"python": f"{platform.python_version()}  {sys.executable}"}
    rows.update({name: version or "missing" for name, version in versions.items()})
    if versions["detectron2"]:
        folder = Path(importlib.util.find_spec("detectron2").origin).parent
        rows["detectron2"] += f"  {folder}"
        faults += check_detectron2(folder)
    _print("Versions", rows)

    torch = sys.modules.get("torch")
    rows = {"CPU": describe_cpu()}
    if torch is not None:
        rows["CPU"] += f", {torch.get_num_threads()} threads"
        lines, gpu_faults = describe_gpus()
        rows["GPU"] = f"\n  {'':<20} ".join(lines)
        faults += gpu_faults
    _print("Device", rows)

    compilers = tuple(filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")))
    rows = {
        "C++ compiler": describe_tool(compilers, r"(\d+\.\d+(?:\.\d+)?)"),
        "nvcc": describe_tool(("nvcc",), r"release (\d+\.\d+)"),
    }
    _print("Tools", rows)

    if torch is not None and not any(fault.fatal for fault in faults):
        faults += (package_faults := check_package())
        if not package_faults:
            ops = importlib.import_module("aff_seg.ops")
            _print("Operators", ops.active_paths())
            faults += check_operators(ops.NATIVE)
            if ops.NATIVE and torch.cuda.is_available():
                faults += check_gpu_operators()

    root = os.getenv("DETECTRON2_DATASETS", "datasets")
    _print(f"Datasets in {root} (DETECTRON2_DATASETS)", describe_datasets(Path(root)))

    print()
    for fault in faults:
        print(f"{'problem' if fault.fatal else 'warning'}: {fault.text}")
    if not faults:
        print("Nothing is wrong.")
    return int(any(fault.fatal for fault in faults))


if __name__ == "__main__":
    sys.exit(main())
