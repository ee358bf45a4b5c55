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


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What nvcc and ptxas say about each source."""
    folder = tmp_path_factory.mktemp("nvcc")
    includes = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    command = [NVCC, "-std=c++17", "-O3", "-Xcompiler=-fPIC", *cpp_extension.COMMON_NVCC_FLAGS]
    command += ["-Werror=all-warnings", "-Xptxas=-v", "-gencode=arch=compute_90,code=sm_90"]
    command += [f"-isystem={path}" for path in includes]

    def compiled(source: Path) -> subprocess.CompletedProcess:
        target = folder / f"{source.name}.o"
        return subprocess.run(
            [*command, "-c", str(source), "-o", str(target)], capture_output=True, text=True
        )

    # Other compilers do not know CUDA's language.
    assert not [*CUDA.glob("*.cpp")]
    sources = sorted(CUDA.glob("*.cu"))
    with ThreadPoolExecutor(2) as pool:
        return {s.name: done for s, done in zip(sources, pool.map(compiled, sources), strict=True)}


@pytest.mark.timeout(1200)
@pytest.mark.skipif(not NVCC or RELEASE != TORCH_CUDA, reason="needs nvcc of torch's CUDA version")
def test_sources_compile_without_spills(reports):
    for name, done in reports.items():
        assert done.returncode == 0, f"{name}: {done.stderr[:3000]}"
    assert {"knn.cu", "cluster_attention.cu", "point_conv.cu"} <= set(reports)
    kernels = _resources(reports["cluster_attention.cu"].stderr)
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
