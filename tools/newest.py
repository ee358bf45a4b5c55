"""Tests with the newest numpy and Pillow, and what is built on them: `make test-newest`.

Installs them below build/newest, in front of the packages of the Python that runs this, which
stay as they are. Needs the network. Further arguments go to pytest, instead of the tests that
concern these packages.
"""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
FOLDER = REPO / "build" / "newest"
PACKAGES = (
    *("numpy", "pillow", "opencv-python-headless", "pycocotools", "matplotlib", "scipy"),
    *("shapely", "scikit-image"),
)
TESTS = (
    *("tests/data", "tests/evaluation", "tests/prediction", "tests/visualization"),
    *("tests/test_nine_tasks.py", "tests/test_train_net.py", "tests/test_tta.py"),
)
# Runs the tests, whose programs are to find the same packages.
START = "import os, pytest, sys; os.environ['PYTHONPATH'] = os.getcwd(); sys.exit(pytest.main())"


def main(arguments: list[str]) -> int:
    venv.create(FOLDER, clear=True)
    python = FOLDER / "bin" / "python"
    own = Path(sysconfig.get_path("purelib", vars={"base": str(FOLDER)}))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, *PACKAGES], check=True)
    beneath = sysconfig.get_path("purelib")
    (own / "beneath.pth").write_text(f"import site; site.addsitedir({beneath!r})\n")
    shown = [*pip[:-2], "list", "--path", str(own)]
    subprocess.run(shown, check=True)
    tests = arguments or [*TESTS, "-m", "not slow"]
    return subprocess.run([python, "-c", START, *tests], cwd=REPO, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
