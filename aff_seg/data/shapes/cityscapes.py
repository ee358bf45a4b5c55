"""Scenes as the Cityscapes dataset lies on disk.

Only the polygons are written here; every label image comes from cityscapesscripts.
"""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from cityscapesscripts.preparation.json2labelImg import createLabelImage
from PIL import Image
from tqdm import tqdm

from aff_seg.data.shapes.scene import Scene

_CITIES = {"train": ("aachen", "bochum", "bremen"), "val": ("frankfurt", "lindau", "munster")}


class CityscapesWriter:
    """Writes ``leftImg8bit`` and ``gtFine`` under ``folder``."""

    top_folder = "cityscapes"

    def __init__(self, folder: Path, *, progress: bool):
        self.folder = folder
        self._progress = progress
        self._count = {split: 0 for split in _CITIES}

    def add(self, scene: Scene, split: str, index: int) -> None:
        """Write one scene; ``index`` counts from 0 within ``split`` (train or val)."""
        cities = _CITIES[split]
        city = cities[index % len(cities)]
        stem = f"{city}_{index:06d}_000019"
        images = self.folder / "leftImg8bit" / split / city
        labels = self.folder / "gtFine" / split / city
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        _save(Image.fromarray(scene.image), images / f"{stem}_leftImg8bit.png")

        text = json.dumps(_polygons(scene), indent=4)
        (labels / f"{stem}_gtFine_polygons.json").write_text(text)
        annotation = Annotation()
        annotation.fromJsonText(text)
        for encoding, name in (
            ("ids", "labelIds"),
            ("trainIds", "labelTrainIds"),
            ("color", "color"),
        ):
            _save(createLabelImage(annotation, encoding), labels / f"{stem}_gtFine_{name}.png")
        # 16 bits, the depth of the official files; newer Pillows do not save mode "I".
        instances = np.asarray(createInstanceImage(annotation, "ids")).astype(np.uint16)
        _save(Image.fromarray(instances), labels / f"{stem}_gtFine_instanceIds.png")
        self._count[split] += 1

    def finish(self, split: str) -> None:
        """Derive the panoptic images and JSON of a split."""
        title = f"cityscapes {split}, panoptic"
        with tqdm(total=self._count[split], desc=title, disable=not self._progress) as bar:
            with contextlib.redirect_stdout(_Ticker(bar)):
                convert2panoptic(cityscapesPath=str(self.folder / "gtFine"), setNames=[split])


class _Ticker(io.TextIOBase):
    """Turns the lines in which cityscapesscripts tells its progress into ticks."""

    def __init__(self, progress: tqdm):
        self._progress = progress

    def write(self, text: str) -> int:
        if text.startswith("\rProgress"):
            self._progress.update()
        return len(text)


def _polygons(scene: Scene) -> dict:
    height, width = scene.labels.shape
    return {
        "imgHeight": height,
        "imgWidth": width,
        "objects": [
            {
                "label": region.kind.cityscapes + ("group" if region.crowd else ""),
                "polygon": region.polygon.tolist(),
            }
            for region in scene.regions
        ],
    }


def _save(image: Image.Image, path: Path) -> None:
    image.save(path, compress_level=1)
