"""Which operators run: the native ones, or the references."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from native_op import native, needs_native
from op_inputs import INPUTS

from aff_seg import doctor, ops

PACKAGE = Path(ops.__file__).parents[1]
KNN = """
import torch
from aff_seg import ops
index, _ = ops.knn(torch.zeros(1, 2, 2), torch.ones(1, 3, 2), 2)
print(ops.NATIVE, index.tolist(), ops.active_paths()["knn"])
"""


def _run(code: str, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    """Run code with the package that lies in ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "AFF_SEG_OPS": "", **variables}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.fixture
def unbuilt(tmp_path):
    """A folder with the package as it is without native operators."""
    ignored = shutil.ignore_patterns("_C.*", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "aff_seg", ignore=ignored)
    return tmp_path


def test_references_run_where_nothing_is_built(unbuilt):
    done = _run(KNN, unbuilt)
    assert done.stdout == (
        "False [[[0, 1], [0, 1]]] CPU reference (PyTorch), GPU reference (PyTorch)\n"
    ), done.stderr


def test_references_run_when_asked_for():
    done = _run(KNN, PACKAGE.parent, AFF_SEG_OPS="reference")
    assert done.stdout.startswith("False [[[0, 1], [0, 1]]] CPU reference"), done.stderr
    done = _run(KNN, PACKAGE.parent, AFF_SEG_OPS="Reference")
    assert "AFF_SEG_OPS must be reference or unset, got Reference." in done.stderr


def test_a_library_that_does_not_load_is_told(unbuilt):
    (unbuilt / "aff_seg" / "_C.so").write_bytes(b"")
    done = _run(KNN, unbuilt)
    assert "the native operators do not load beside PyTorch" in done.stderr.splitlines()[-1]


def test_a_library_of_other_sources_is_told(unbuilt):
    (unbuilt / "aff_seg" / "_C.py").write_text("CUDA = False\n")
    done = _run(KNN, unbuilt)
    assert "built from other sources (knn differs): build them again" in done.stderr


@pytest.mark.parametrize(
    ("native_ones", "choice", "words"),
    [
        (True, None, None),
        (False, None, "the native ones are not built: with a C++ compiler"),
        (False, "reference", "AFF_SEG_OPS=reference asks for that"),
    ],
)
def test_doctor_says_which(monkeypatch, native_ones, choice, words):
    monkeypatch.delenv("AFF_SEG_OPS", raising=False)
    if choice:
        monkeypatch.setenv("AFF_SEG_OPS", choice)
    faults = doctor.check_operators(native_ones)
    assert [words in fault.text and not fault.fatal for fault in faults] == [True] * bool(words)


@needs_native
@pytest.mark.parametrize("name", sorted(INPUTS))
def test_a_second_gradient_is_refused(name):
    leaves, given = INPUTS[name](torch.float32)
    leaves = {key: x.requires_grad_() for key, x in leaves.items()}
    out = native(name, given)(**leaves)
    first = next(iter(leaves.values()))
    (grad,) = torch.autograd.grad(out.square().sum(), first, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.square().sum().backward()


@needs_native
@pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer takes memory of its own"
)
def test_attention_stores_nothing_for_each_neighbour():
    """Forward and backward in less memory than one number per pair would take."""
    code = """
import torch
from aff_seg import ops

def high_water():
    with open("/proc/self/status") as stream:
        (line,) = (line for line in stream if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024

count, heads, dim, m, near = 16384, 4, 8, 8, 64
q, k, v = (torch.randn(1, count, heads, dim, requires_grad=True) for _ in range(3))
clusters = torch.randint(0, count // m, (1, count, near)).int()
rest = torch.randn(heads, 5), torch.randn(heads), torch.randn(heads * dim), torch.randn(heads * dim)
pos = torch.rand(1, count, 2)
ops.cluster_attention(q[:, :9], k[:, :9], v[:, :9], pos[:, :9], clusters[:, :9] % 2, m, *rest)
before = high_water()
ops.cluster_attention(q, k, v, pos, clusters, m, *rest).sum().backward()
print(high_water() - before, count * near * m * heads * 4 / 2**20)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux's /proc")
    done = _run(code, PACKAGE.parent)
    used, pairs = map(float, done.stdout.split())
    assert used < pairs / 2, done.stderr
