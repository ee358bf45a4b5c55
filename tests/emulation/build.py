"""Builds the CUDA kernels for a CPU: threads become fibers, see emulated_cuda.h."""

import hashlib
import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-DAFF_SEG_EMULATED", "-Wno-unknown-pragmas", f"-I{HERE}"]


def compiler() -> str | None:
    """The C++ compiler, or None."""
    return shutil.which(os.environ.get("CXX", "c++"))


def build() -> Path:
    """Compile what has changed; return the library, which registers ``aff_seg_emulated``."""
    csrc = ROOT / "csrc"
    sources = [*csrc.glob("*.cpp"), *csrc.glob("cuda/*.cu")]
    sources.remove(csrc / "module.cpp")
    headers = b"".join(
        path.read_bytes() for path in sorted([*csrc.rglob("*.h"), *HERE.glob("*.h")])
    )
    common = hashlib.sha256(headers + torch.__version__.encode() + str(FLAGS).encode()).digest()
    folder = ROOT / "build" / "emulated"
    folder.mkdir(parents=True, exist_ok=True)
    includes = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    command = [compiler(), *FLAGS, *(f"-isystem{path}" for path in includes), "-x", "c++", "-c"]

    def compiled(source: Path) -> Path:
        digest = hashlib.sha256(common + source.read_bytes()).hexdigest()[:16]
        target = folder / f"{source.stem}-{digest}.o"
        if not target.exists():
            draft = target.with_suffix(f".{os.getpid()}")
            subprocess.run([*command, str(source), "-o", str(draft)], check=True)
            draft.replace(target)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = sorted(map(str, pool.map(compiled, sorted(sources))))
    name = hashlib.sha256("".join(objects).encode()).hexdigest()[:16]
    library = folder / f"emulated-{name}.so"
    if not library.exists():
        torch_libraries = Path(torch.__file__).parent / "lib"
        link = ["-shared", f"-L{torch_libraries}", "-ltorch", "-ltorch_cpu", "-lc10"]
        draft = library.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler(), *objects, *link, "-o", str(draft)], check=True)
        draft.replace(library)
    return library
