"""Finding and mending what an interrupted `make setup`, or a moved checkout, left in `.venv`."""

import csv
import os
import re

# How a script may start: the kernel takes no spaces in the path of a plain first line, while
# both sh and Python read these.
PORTABLE_START = b"""#!/bin/sh
'''exec' "%s" "$0" "$@"
' '''
"""


def incomplete_packages(packages):
    """Metadata folders of the packages that lost files, or never got all of them.

    With its metadata folder removed, pip takes such a package for absent and installs it anew.

    Args:
        packages: a site-packages folder.
    """
    metadata = [name for name in sorted(os.listdir(packages)) if name.endswith(".dist-info")]
    return [
        os.path.join(packages, name)
        for name in metadata
        if not _is_complete(packages, os.path.join(packages, name, "RECORD"))
    ]


def _is_complete(packages, record):
    """Whether each file that ``record`` lists in ``packages`` is there, with its size."""
    if not os.path.isfile(record):
        return False
    with open(record, encoding="utf-8", newline="") as stream:
        for path, _, size in csv.reader(stream):
            # `relocate` rewrites the scripts, which lie outside; Python rewrites bytecode.
            if size and not path.startswith("..") and not path.endswith(".pyc"):
                file = os.path.join(packages, path)
                if not os.path.isfile(file) or os.path.getsize(file) != int(size):
                    return False
    return True


def drop_absent_files(metadata):
    """Take the files that are gone out of the RECORD of one metadata folder."""
    packages, record = os.path.dirname(metadata), os.path.join(metadata, "RECORD")
    with open(record, encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.reader(stream) if os.path.exists(os.path.join(packages, row[0]))]
    with open(record, "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows(rows)


def relocate(venv):
    """Where the folder ``venv`` was moved or copied, rewrite the paths its scripts hold.

    Returns:
        The path it had before, or None if it has not moved.
    """
    scripts = os.path.join(venv, "bin")
    activate = os.path.join(scripts, "activate")
    if not os.path.isfile(activate):
        return None
    with open(activate, encoding="utf-8") as stream:
        found = re.search(r"""^\s*(?:export )?VIRTUAL_ENV=["']?(/[^"'\n]*)""", stream.read(), re.M)
    if not found or found.group(1) == venv:
        return None
    before, after = (os.fsencode(path) for path in (found.group(1), venv))
    first_line = re.compile(rb"\A#!(" + re.escape(before) + rb"/bin/.+)\n")
    # `activate` says where the folder was: it comes last, so that a run cut short is repeated.
    names = sorted(os.listdir(scripts), key=lambda name: name == "activate")
    paths = [os.path.join(scripts, name) for name in names]
    for path in [os.path.join(venv, "pyvenv.cfg"), *paths]:
        if os.path.isfile(path) and not os.path.islink(path):
            with open(path, "rb") as stream:
                content = stream.read()
            if before in content and b"\0" not in content:
                content = first_line.sub(lambda match: PORTABLE_START % match.group(1), content)
                with open(path, "wb") as stream:
                    stream.write(content.replace(before, after))
    return found.group(1)
