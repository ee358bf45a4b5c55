"""Commands that mend a dataset, for messages."""

import shlex
from pathlib import Path

from aff_seg.data.shapes.dataset import MANIFEST

_FRESH_ROOT = "datasets/shapes"


def draw_command(layout: str, root: Path) -> str:
    """How to draw a dataset of shapes: into ``root`` where it takes one, else into a new root."""
    command = f"python datasets/make_shapes.py --layout {layout} --root"
    others = [entry for entry in root.iterdir() if not is_drawn(entry)] if root.is_dir() else []
    if others:
        return f"{command} {_FRESH_ROOT}, then export DETECTRON2_DATASETS={_FRESH_ROOT}"
    return f"{command} {shlex.quote(str(root))}"


def prepare_command(dataset: str, root: Path) -> str:
    """How to make what training on ``dataset`` in ``root`` needs beside the published files."""
    return f"python datasets/prepare_{dataset}.py --root {shlex.quote(str(root))}"


def is_drawn(folder: Path) -> bool:
    """Whether a folder holds a dataset of shapes, complete or not; raw ones pass for downloaded."""
    manifest = folder / MANIFEST
    return manifest.is_file() and '"raw": true' not in manifest.read_text()
