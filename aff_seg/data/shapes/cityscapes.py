"""Scenes as the Cityscapes dataset lies on disk.

Only the polygons are drawn here; every label image comes from cityscapesscripts.
"""

import json
from pathlib import Path

import numpy as np
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from cityscapesscripts.preparation.json2labelImg import createLabelImage
from PIL import Image

from aff_seg.data.preparation.cityscapes import CITYSCAPES
from aff_seg.data.shapes.scene import Scene

_CITIES = {"train": ("aachen", "bochum", "bremen"), "val": ("frankfurt", "lindau", "munster")}


class CityscapesWriter:
    """Writes ``leftImg8bit`` and ``gtFine`` under ``folder``."""

    dataset = CITYSCAPES

    def __init__(self, folder: Path):
        self.folder = folder

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
        for encoding, name in (("ids", "labelIds"), ("color", "color")):
            _save(createLabelImage(annotation, encoding), labels / f"{stem}_gtFine_{name}.png")
        # 16 bits, the depth of the official files; newer Pillows do not save mode "I".
        instances = np.asarray(createInstanceImage(annotation, "ids")).astype(np.uint16)
        _save(Image.fromarray(instances), labels / f"{stem}_gtFine_instanceIds.png")

    def finish(self, split: str) -> None:
        """Nothing is left to do: Cityscapes is published without a file per split."""


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
