"""Tests of the operators under the compiler's sanitizers: `make sanitize`.

Builds a second copy of the package, with address and undefined-behaviour sanitizers in its native
operators, below build/sanitize, and runs tests/ops on it. The usual build stays as it is. Further
arguments go to pytest.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
BUILD = REPO / "build" / "sanitize"
PACKAGES = BUILD / "lib"
# libstdc++, which Python does not load by itself, must be there when the sanitizer starts.
LIBRARIES = ("libasan.so", "libubsan.so", "libstdc++.so.6")
# CPython leaks on purpose. On an abort, pytest tells where in Python it was.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allow_user_segv_handler=0",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1:abort_on_error=1",
}
# The tests run in the process that has checked what it loads.
TESTS = """
import sys
from pathlib import Path
import pytest, torch, aff_seg._C
library = Path(aff_seg._C.__file__)
if not library.is_relative_to(sys.argv[1]) or b"__asan_report_load" not in library.read_bytes():
    sys.exit(f"{library} is not the build with sanitizers.")
sys.exit(pytest.main(sys.argv[2:]))
"""


def sanitizer_libraries(compiler: str) -> list[str]:
    """Paths of the compiler's sanitizers; exits with a sentence where it has none."""
    if not shutil.which(compiler):
        sys.exit(f"There is no compiler {compiler}; install g++, or name another by CXX.")
    paths = []
    for name in LIBRARIES:
        command = [compiler, f"-print-file-name={name}"]
        path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        # A compiler repeats the name of what it does not find.
        if not Path(path).is_absolute():
            sys.exit(f"The compiler {compiler} has no {name}: install g++, or name another by CXX.")
        paths.append(path)
    return paths


def main() -> None:
    preload = sanitizer_libraries(os.environ.get("CXX", "c++"))
    build = [sys.executable, "setup.py", "-q", "build"]
    build += [f"--build-temp={BUILD / 'temp'}", f"--build-lib={PACKAGES}"]
    environment = {**os.environ, "AFF_SEG_BUILD": "sanitize"}
    # The compilers are beside the Python of the environment (ninja) and on the path.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    print("Building the operators with sanitizers: some minutes the first time.", flush=True)
    built = subprocess.run(build, cwd=REPO, env=environment, capture_output=True, text=True)
    if built.returncode:
        sys.exit(f"{built.stdout}{built.stderr}\nThe build with sanitizers failed.")
    environment |= OPTIONS | {"LD_PRELOAD": os.pathsep.join(preload), "PYTHONPATH": str(PACKAGES)}
    environment.pop("AFF_SEG_OPS", None)
    arguments = [f"--rootdir={REPO}", f"--config-file={REPO / 'pyproject.toml'}", "-q"]
    # Sanitizers write past Python; their report must not be captured.
    arguments += ["-p", "no:cacheprovider", "--capture=sys", *sys.argv[1:]]
    tests = [sys.executable, "-c", TESTS, str(PACKAGES), *arguments, str(REPO / "tests" / "ops")]
    sys.exit(subprocess.run(tests, cwd=PACKAGES, env=environment).returncode)


if __name__ == "__main__":
    main()
