"""Packaging of aff_seg: ``pip install --no-build-isolation -e .`` beside torch and Detectron2.

torch, torchvision and Detectron2 are not requirements: they have builds of their own for each
machine, and an existing one is used as it is. `make setup` installs pinned versions of all.

The native operators (``csrc/``) are built where torch, a C++ compiler and Python's headers are
there; without them the PyTorch references run. AFF_SEG_BUILD chooses how:
    native    for the processor at hand (the default)
    portable  for any processor of the kind, as where the machines of a cluster differ
    sanitize  with the compiler's sanitizers, for tests (`make sanitize`)
    none      not at all
"""

import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from setuptools import find_packages, setup

# Modules that several distributions provide: any of them will do.
PROVIDERS = {"cv2": "opencv-python-headless>=4.5", "panopticapi": "panopticapi-lite>=0.2"}
# Compiler flags for each value of AFF_SEG_BUILD.
_SANITIZERS = ["-fsanitize=address,undefined"]
_FRAMES = ["-O1", "-g", "-fno-omit-frame-pointer", "-D_GLIBCXX_ASSERTIONS"]
BUILDS = {
    "native": ["-O3", "-g0", "-march=native"],
    "portable": ["-O3", "-g0"],
    "sanitize": [*_FRAMES, *_SANITIZERS, "-march=native"],
    "none": [],
}


def native_operators() -> dict:
    """The extension ``aff_seg._C`` as arguments of ``setup``; none where it cannot be built."""
    build = os.environ.get("AFF_SEG_BUILD", "native")
    if build not in BUILDS:
        sys.exit(f"error: AFF_SEG_BUILD must be one of {', '.join(BUILDS)}, got {build}.")
    missing = []
    if find_spec("torch") is None:
        missing.append("torch (add --no-build-isolation to use the installed one)")
    if not any(shutil.which(name) for name in (os.environ.get("CXX"), "c++", "g++") if name):
        missing.append("a C++ compiler")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        missing.append("Python's headers")
    if build == "none":
        return {}
    if missing:
        print(
            f"aff_seg: without {' and '.join(missing)} there are no native operators.",
            file=sys.stderr,
        )
        return {}
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    flags = ["-fopenmp", "-fno-math-errno", *BUILDS[build]]
    warnings = ["-Wall", "-Wextra", "-Wno-unused-parameter"]
    sources = sorted(str(path) for path in Path("csrc").rglob("*.cpp"))
    extension = CppExtension(
        "aff_seg._C",
        sources,
        extra_compile_args=[*flags, *warnings],
        extra_link_args=["-fopenmp", *(_SANITIZERS if build == "sanitize" else [])],
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildExtension}}


setup(
    name="aff_seg",
    version="0.1.0",
    description="AutoFocusFormer for semantic, instance and panoptic segmentation on Detectron2",
    license="MIT",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["aff_seg", "aff_seg.*"]),
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
    },
    **native_operators(),
)
