"""The programs of ``tools`` that have no test of their own."""

import subprocess
import sys

import torch
from safetensors.torch import load_file


def _run(*command: str) -> str:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_convert_checkpoint_keeps_every_tensor(tmp_path):
    source, target = tmp_path / "model.pth", tmp_path / "model.safetensors"
    weights = {"a.weight": torch.randn(3, 4), "a.count": torch.tensor(7)}
    torch.save({"model": weights, "iteration": 5}, source)
    _run("tools/convert_checkpoint.py", str(source), str(target), "--half")
    found = load_file(target)
    assert found["a.weight"].dtype == torch.float16
    torch.testing.assert_close(found["a.weight"].float(), weights["a.weight"], rtol=1e-3, atol=1e-3)
    assert torch.equal(found["a.count"], weights["a.count"])


def test_sanitize_tells_what_the_compiler_lacks(tmp_path, monkeypatch):
    compiler = tmp_path / "bare-c++"
    compiler.write_text("#!/bin/sh\necho ${1#-print-file-name=}\n")
    compiler.chmod(0o755)
    for name, message in ((str(compiler), "has no libasan.so"), ("no-such-c++", "no compiler no-")):
        monkeypatch.setenv("CXX", name)
        command = [sys.executable, "tools/sanitize.py"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and message in done.stderr and "install g++" in done.stderr
