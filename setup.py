"""Packaging of aff_seg: ``pip install --no-build-isolation -e .`` beside torch and Detectron2.

torch, torchvision and Detectron2 are not requirements: they have builds of their own for each
machine, and an existing one is used as it is. `make setup` installs pinned versions of all.

The native operators (``csrc/``) are built where torch, a C++ compiler and Python's headers are
there; without them the PyTorch references run. AFF_SEG_BUILD chooses how:
    native    for the processor at hand (the default)
    portable  for any processor of the kind, as where the machines of a cluster differ
    sanitize  with the compiler's sanitizers, for tests (`make sanitize`)
    none      not at all

Their CUDA kernels are built where there is a CUDA toolkit of the major version that torch was built
for, for the GPUs that TORCH_CUDA_ARCH_LIST names; FORCE_CUDA=1 makes it an error if they cannot be,
FORCE_CUDA=0 leaves them out.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.util import find_spec
from pathlib import Path

from setuptools import find_packages, setup

# Modules that several distributions provide: any of them will do.
PROVIDERS = {"cv2": "opencv-python-headless>=4.5", "panopticapi": "panopticapi-lite>=0.2"}
# Compiler flags for each value of AFF_SEG_BUILD.
_SANITIZERS = ["-fsanitize=address,undefined"]
_FRAMES = ["-O1", "-g", "-fno-omit-frame-pointer", "-D_GLIBCXX_ASSERTIONS"]
# Of a toolkit, where the library lies that programs are linked to.
LIBRARY_FOLDERS = ("lib64", "lib", "lib/x64", "lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu")
ARCHITECTURES = "8.0 8.6 8.9 9.0+PTX"
# Generations of GPUs before the first of these, whose instructions the kernels use.
OLD_GENERATIONS = ("Kepler", "Maxwell", "Pascal", "Volta", "Turing")
BUILDS = {
    "native": ["-O3", "-g0", "-march=native"],
    "portable": ["-O3", "-g0"],
    "sanitize": [*_FRAMES, *_SANITIZERS, "-march=native"],
    "none": [],
}


def architectures() -> tuple[list[str], list[str]]:
    """What TORCH_CUDA_ARCH_LIST names: GPUs that the kernels run on, and older ones."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    old = [name for name in asked if name.startswith(OLD_GENERATIONS) or re.match(r"[1-7]\.", name)]
    return [name for name in asked or ARCHITECTURES.split() if name not in old], old


def find_toolkit() -> Path | None:
    """Folder of a CUDA toolkit with its compiler and the library to link to."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc")
    # It may be a link, or a script that calls one elsewhere.
    own = [Path(os.path.realpath(nvcc)).parent.parent, Path(nvcc).parent.parent] if nvcc else []
    folders = [Path(named)] if named else [*own, Path("/usr/local/cuda")]
    for folder in folders:
        libraries = [folder / place / "libcudart.so" for place in LIBRARY_FOLDERS]
        if (folder / "bin" / "nvcc").is_file() and any(map(Path.exists, libraries)):
            return folder
    return None


def fault_of(nvcc: Path, version: str) -> str | None:
    """Why this compiler does not do beside a torch built for CUDA ``version``."""
    told = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    release = re.search(r"release (\d+)\.", told.stdout)
    if not release or release[1] != version.split(".")[0]:
        return f"{nvcc} is not of CUDA {version.split('.')[0]}, which torch is built for"
    if not architectures()[0]:
        return "TORCH_CUDA_ARCH_LIST names no compute capability of 8.0 or more"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cu")
        source.write_text("#include <vector>\n__global__ void probe() {}\n", encoding="utf-8")
        command = [nvcc, "-std=c++17", "-c", source, "-o", source.with_suffix(".o")]
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
    errors = [line for line in tried.stderr.splitlines() if "error" in line]
    return f"{nvcc} does not compile ({errors[0] if errors else ''})" if tried.returncode else None


def builds_cuda() -> bool:
    """Whether the CUDA kernels can be built; says why not where a toolkit does not fit."""
    force = os.environ.get("FORCE_CUDA")
    if force == "0":
        return False
    from torch.utils import cpp_extension
    from torch.version import cuda

    toolkit = find_toolkit()
    if cuda is None:
        fault = "this torch is built without CUDA"
    elif toolkit is None:
        fault = f"there is no CUDA toolkit (torch is built for CUDA {cuda})"
    else:
        fault = fault_of(toolkit / "bin" / "nvcc", cuda)
    if fault is None:
        cpp_extension.CUDA_HOME = str(toolkit)
        return True
    if force == "1":
        sys.exit(f"error: FORCE_CUDA=1, but {fault}.")
    print(f"aff_seg: {fault}, so that no CUDA kernels are built.", file=sys.stderr)
    return False


def native_operators() -> dict:
    """The extension ``aff_seg._C`` as arguments of ``setup``; none where it cannot be built."""
    build = os.environ.get("AFF_SEG_BUILD") or "native"
    if build not in BUILDS:
        sys.exit(f"error: AFF_SEG_BUILD must be one of {', '.join(BUILDS)}, got {build}.")
    missing = []
    if find_spec("torch") is None:
        missing.append("torch (add --no-build-isolation to use the installed one)")
    if not shutil.which(os.environ.get("CXX", "c++")):
        missing.append("a C++ compiler")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        missing.append("Python's headers")
    if os.environ.get("FORCE_CUDA") == "1" and (missing or build in ("none", "sanitize")):
        without = f"without {' and '.join(missing)}" if missing else f"with AFF_SEG_BUILD={build}"
        sys.exit(f"error: FORCE_CUDA=1, but {without} no CUDA kernels are built.")
    if build == "none":
        return {}
    if missing:
        print(
            f"aff_seg: without {' and '.join(missing)} there are no native operators.",
            file=sys.stderr,
        )
        return {}
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    flags = ["-fopenmp", "-fno-math-errno", *BUILDS[build]]
    warnings = ["-Wall", "-Wextra", "-Wno-unused-parameter"]
    arguments = {"cxx": [*flags, *warnings]}
    cuda = build != "sanitize" and builds_cuda()
    sources = [*Path("csrc").rglob("*.cpp")]
    if cuda:
        capable, old = architectures()
        if old:
            print(
                f"aff_seg: the CUDA kernels need a compute capability of 8.0 or more, so that "
                f"{', '.join(old)} of TORCH_CUDA_ARCH_LIST is left out.",
                file=sys.stderr,
            )
        os.environ["TORCH_CUDA_ARCH_LIST"] = " ".join(capable)
        sources += Path("csrc").rglob("*.cu")
        arguments["cxx"].append("-DAFF_SEG_WITH_CUDA")
        arguments["nvcc"] = ["-O3", "--threads=2"]
    extension = (CUDAExtension if cuda else CppExtension)(
        "aff_seg._C",
        sorted(map(str, sources)),
        extra_compile_args=arguments,
        extra_link_args=["-fopenmp", *(_SANITIZERS if build == "sanitize" else [])],
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildExtension}}


setup(
    name="aff_seg",
    version="0.1.0",
    description="AutoFocusFormer for semantic, instance and panoptic segmentation on Detectron2",
    license="MIT",
    python_requires=">=3.10,<3.13",
    # The configs, which lie beside the package here, are a folder of it where it is installed.
    packages=[*find_packages(include=["aff_seg", "aff_seg.*"]), "aff_seg.configs"],
    package_dir={"aff_seg.configs": "configs"},
    package_data={"aff_seg.configs": ["**/*.yaml"]},
    install_requires=[
        "cityscapesscripts>=2.2",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.9",
        "matplotlib>=3.5",
        "numpy>=1.22",
        "packaging>=21",
        "pillow>=9.1",
        "pycocotools>=2.0.6",
        "safetensors>=0.4",
        "scipy>=1.8",
        "shapely>=1.8",
        "tabulate>=0.8",
        "tensorboard>=2.8",
        "termcolor>=1.1",
        "tqdm>=4.60",
        "yacs>=0.1.8",
        *(name for module, name in PROVIDERS.items() if find_spec(module) is None),
    ],
    extras_require={
        "dev": ["ninja>=1.10", "pytest>=7.4", "pytest-timeout>=2.2", "ruff>=0.5"],
        "bench": ["transformers>=5.0"],
        "slurm": ["submitit>=1.5"],
    },
    **native_operators(),
)
