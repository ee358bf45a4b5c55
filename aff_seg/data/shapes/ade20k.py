"""Scenes as the scene parsing and instance sets of ADE20K lie on disk."""

from pathlib import Path

import numpy as np
from PIL import Image

from aff_seg.data.preparation.ade20k import ADE20K
from aff_seg.data.shapes.scene import Scene

_FOLDER_OF = {"train": "training", "val": "validation"}


class Ade20kWriter:
    """Writes pictures and both kinds of annotation images under ``folder``."""

    dataset = ADE20K

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, scene: Scene, split: str, index: int) -> None:
        """Write one scene; ``index`` counts from 0 within ``split`` (train or val)."""
        stem = f"ADE_{split}_{index + 1:08d}"
        picture = self._path("images", split, f"{stem}.jpg")
        Image.fromarray(scene.image).save(picture, quality=95, subsampling=0)

        classes = np.array([r.kind.ade20k for r in scene.regions], dtype=np.uint8)[scene.labels]
        self._save(classes, "annotations", split, stem)
        self._save(_instances(scene), "annotations_instance", split, stem)

    def finish(self, split: str) -> None:
        """Nothing is left to do: ADE20K has no file per split."""

    def _save(self, labels: np.ndarray, kind: str, split: str, stem: str) -> None:
        path = self._path(kind, split, f"{stem}.png")
        Image.fromarray(labels).save(path, compress_level=1)

    def _path(self, kind: str, split: str, name: str) -> Path:
        folder = self.folder / kind / _FOLDER_OF[split]
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name


def _instances(scene: Scene) -> np.ndarray:
    """uint8 (H, W, 3): red is the class, green counts the things of the image from 1.

    ADE20K knows no crowds: each member of one is a thing of its own.
    """
    colours = np.zeros((len(scene.regions), 3), dtype=np.uint8)
    things = [i for i, region in enumerate(scene.regions) if region.kind.is_thing]
    for number, index in enumerate(things, start=1):
        colours[index, :2] = scene.regions[index].kind.ade20k_instance, number
    return colours[scene.labels]
