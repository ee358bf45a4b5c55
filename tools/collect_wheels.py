"""Collect the packages that `make setup` installs, for a machine without a network.

There, `make setup WHEELS=folder` (or any other target) installs from the folder. torch is left
out, for it takes gigabytes and such machines mostly have one, unless --torch asks for it.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Published as source only; their wheels are for any Python.
SOURCES = ("antlr4-python3-runtime", "fvcore", "iopath", "typing")
GLIBC = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")


def pins(with_torch: bool) -> list[str]:
    """What set-up and the benchmark install; without torch, if so asked."""
    required = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    # Constraints for torch, then those for the benchmark.
    _, extra = (ROOT / "constraints.txt").read_text(encoding="utf-8").split("`bench`")
    pins = [line for line in (required + extra).splitlines() if re.match(r"[\w.-]+==", line)]
    return [pin for pin in pins if with_torch or not pin.startswith("torch")]


def pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(f"collect_wheels: `pip {' '.join(arguments)}` failed; its output says why.")


def collect(folder: Path, version: str, with_torch: bool) -> None:
    """Download or build the wheels for a Python ``version`` such as 3.12, on Linux x86-64."""
    chosen = pins(with_torch)
    built = [pin for pin in chosen if pin.split("==")[0] in SOURCES]
    target = ["--only-binary=:all:", "--python-version", version, "--implementation", "cp"]
    target += [flag for name in GLIBC for flag in ("--platform", f"{name}_x86_64")]
    pip("wheel", "--no-deps", "-w", str(folder), *built)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as stream:
        stream.write("\n".join(pin for pin in chosen if pin not in built))
        stream.flush()
        deps = ["-c", "constraints.txt"] if with_torch else ["--no-deps"]
        pip("download", *deps, *target, "-d", str(folder), "-r", stream.name)
    wheel = ["--only-binary=:all:", "--python-version", "3.10", "--abi", "none"]
    wheel += ["--implementation", "cp", "--platform", "any"]
    pip("download", "--no-deps", *wheel, "-d", str(folder), "-r", "requirements-detectron2.txt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    default = "{}.{}".format(*sys.version_info)
    parser.add_argument("--python", default=default, help=f"of that machine, as {default}")
    parser.add_argument("--torch", action="store_true", help="torch, too: 3 GB more")
    options = parser.parse_args()
    collect(options.folder, options.python, options.torch)
    print(f"Bring {options.folder} there: make setup WHEELS={options.folder}")


if __name__ == "__main__":
    main()
