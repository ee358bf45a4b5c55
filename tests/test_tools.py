"""The programs of ``tools`` that have no test of their own."""

import subprocess
import sys


def test_sanitize_tells_what_the_compiler_lacks(tmp_path, monkeypatch):
    compiler = tmp_path / "bare-c++"
    compiler.write_text("#!/bin/sh\necho ${1#-print-file-name=}\n")
    compiler.chmod(0o755)
    for name, message in ((str(compiler), "has no libasan.so"), ("no-such-c++", "no compiler no-")):
        monkeypatch.setenv("CXX", name)
        command = [sys.executable, "tools/sanitize.py"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and message in done.stderr and "install g++" in done.stderr
