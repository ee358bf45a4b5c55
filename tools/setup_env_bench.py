"""Install the `bench` extra into `.venv`; run by `make bench`, which goes on without it.

Standard library only.
"""

import os
import sys

from setup_env_checks import SetupError
from setup_env_commands import Commands

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
# Lists those of the requirements of the extra that are not there.
EXTRA = """
import json
from importlib.metadata import PackageNotFoundError, distribution, requires
wanted = [line.split(";")[0] for line in requires("aff_seg") if 'extra == "bench"' in line]
def missing(requirement):
    try:
        distribution(requirement.split(">")[0].strip())
    except PackageNotFoundError:
        return True
print(json.dumps([requirement for requirement in wanted if missing(requirement)]))
"""


def main(root=ROOT):
    environment = Commands(root)
    missing = environment.ask(EXTRA)
    if not missing:
        return
    # Beside an existing Detectron2, `make setup` wrote down what has to stay as it is.
    kept = os.path.join(environment.path, "kept.txt")
    pins = kept if os.path.isfile(kept) else "requirements.txt"
    try:
        environment.pip("installing the bench extra", "-c", pins, *missing)
    except SetupError as error:
        print(f"make bench: {error} The benchmark goes on without it.", file=sys.stderr)


if __name__ == "__main__":
    main()
