"""The CUDA sources compile without a warning, and keep what is hot in registers."""

import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

CUDA = Path(__file__).parents[2] / "csrc" / "cuda"
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
RELEASE = 0
if NVCC:
    told = subprocess.run([NVCC, "--version"], capture_output=True, text=True, check=True).stdout
    RELEASE = int(re.search(r"release (\d+)\.", told)[1])
# What the tensors' library was built for; its headers and the toolkit's must fit.
TORCH_CUDA = int((torch.version.cuda or "0").split(".")[0])


needs_nvcc = pytest.mark.skipif(
    not NVCC or RELEASE != TORCH_CUDA, reason="needs nvcc of torch's CUDA version"
)


def _compiled(source: Path, target: Path, *options: str) -> str:
    """What nvcc and ptxas say about a source that compiles."""
    includes = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    command = [NVCC, "-std=c++17", "-O3", "-Xcompiler=-fPIC", *cpp_extension.COMMON_NVCC_FLAGS]
    command += ["-Werror=all-warnings", *options]
    command += [f"-isystem={path}" for path in includes]
    command += [str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{source.name}: {done.stderr[:3000]}"
    return done.stderr


@pytest.mark.timeout(1200)
@needs_nvcc
def test_sources_compile_without_a_warning(tmp_path):
    # Other compilers do not know CUDA's language.
    assert not [*CUDA.glob("*.cpp")]
    sources = sorted(CUDA.glob("*.cu"))
    assert {"knn.cu", "cluster_attention.cu", "point_conv.cu"} <= {s.name for s in sources}
    # As far as PTX: making machine code of it takes much longer and warns of nothing else.
    targets = [tmp_path / f"{source.name}.ptx" for source in sources]
    with ThreadPoolExecutor(2) as pool:
        list(
            pool.map(
                lambda pair: _compiled(*pair, "-arch=compute_90", "-ptx"),
                zip(sources, targets, strict=True),
            )
        )


@pytest.mark.slow
@needs_nvcc
def test_the_forward_pass_of_attention_stays_in_registers(tmp_path):
    machine = ["-Xptxas=-v", "-gencode=arch=compute_90,code=sm_90", "-c"]
    report = _compiled(CUDA / "cluster_attention.cu", tmp_path / "attention.o", *machine)
    kernels = _resources(report)
    assert len(kernels) >= 4
    spilling = {name: bytes_ for name, bytes_ in kernels.items() if bytes_}
    assert not spilling


def _resources(report: str) -> dict[str, int]:
    """Bytes spilled to local memory by each kernel of a report of ptxas."""
    found = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads",
        report,
        re.DOTALL,
    )
    return {name: int(stores) + int(loads) for name, stores, loads in found}
