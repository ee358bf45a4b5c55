"""Whether a Cityscapes tree is complete, and the command that completes it."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from detectron2.data.catalog import Metadata

from aff_seg.data.remedies import draw_command, is_drawn
from aff_seg.errors import UserError

_IMAGE_SUFFIX = "_leftImg8bit.png"
# Annotation files beside gtFine's cities that training and evaluation read, by evaluator.
_LABELS = {
    "cityscapes_panoptic_seg": ("labelIds.png", "instanceIds.png", "labelTrainIds.png"),
    "cityscapes_instance": ("instanceIds.png", "polygons.json"),
    "cityscapes_sem_seg": ("labelIds.png", "labelTrainIds.png", "polygons.json"),
}
_TOOLS = "python -m cityscapesscripts.preparation."


def check_cityscapes_files(name: str, metadata: Metadata) -> None:
    """Check that every image of a split has the annotation files its task reads.

    Args:
        name: of the dataset, for messages.
        metadata: as Detectron2 registers Cityscapes' panoptic, instance and semantic sets.

    Raises:
        UserError: names the first file that is missing and the command that makes it.
    """
    registered = metadata.get("image_root") or metadata.get("image_dir")
    image_root = Path(registered)
    tree = _Tree(name=name, folder=image_root.parent.parent)
    panoptic = metadata.evaluator_type == "cityscapes_panoptic_seg"
    if panoptic and "." in registered:
        raise UserError(
            f"Dataset {name}: the path {registered} contains a dot, at which Detectron2's "
            "reader cuts it; set DETECTRON2_DATASETS to a path without dots."
        )
    tree.require(image_root)
    tree.require(Path(metadata.gt_dir))
    images = sorted(image_root.glob("*/*"))
    if not images:
        raise UserError(f"Dataset {name}: {image_root} holds no images; {tree.remedy('')}.")
    stems = {}
    for image in images:
        if not image.name.endswith(_IMAGE_SUFFIX):
            raise UserError(
                f"Dataset {name}: {image} is not named like an image (*{_IMAGE_SUFFIX}); move "
                "it elsewhere, for Detectron2 stops at it."
            )
        stem = image.name.removesuffix(_IMAGE_SUFFIX)
        stems[stem] = image
        for label in _LABELS[metadata.evaluator_type]:
            tree.require(Path(metadata.gt_dir) / image.parent.name / f"{stem}_gtFine_{label}")
    if panoptic:
        _check_panoptic(tree, metadata, stems)


def _check_panoptic(tree: "_Tree", metadata: Metadata, images: dict[str, Path]) -> None:
    listing, folder = Path(metadata.panoptic_json), Path(metadata.panoptic_root)
    tree.require(listing)
    tree.require(folder)
    try:
        annotations = json.loads(listing.read_text())["annotations"]
        files = {entry["image_id"]: folder / entry["file_name"] for entry in annotations}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"Dataset {tree.name}: {listing} is damaged ({type(error).__name__}: {error}); "
            f"{tree.remedy(listing.name)}."
        ) from error
    for image_id, file in files.items():
        if image_id not in images:
            raise UserError(
                f"Dataset {tree.name}: {listing} lists {image_id}, whose image is missing; "
                f"{tree.remedy('')}."
            )
        tree.require(file)
    for image_id, image in images.items():
        if image_id not in files:
            raise UserError(
                f"Dataset {tree.name}: image {image} is not listed in {listing}; "
                f"{tree.remedy(listing.name)}."
            )


@dataclass(frozen=True)
class _Tree:
    """The folder ``cityscapes`` of a dataset root."""

    name: str
    folder: Path

    def require(self, path: Path) -> None:
        if not path.exists():
            raise UserError(f"Dataset {self.name}: {path} is missing; {self.remedy(path.name)}.")

    def remedy(self, file_name: str) -> str:
        """Say how to get a file of that name."""
        shapes = draw_command("cityscapes", self.folder.parent)
        if is_drawn(self.folder):
            return f"delete {self.folder} and draw it anew: {shapes}"
        if not self.folder.exists():
            return (
                "set DETECTRON2_DATASETS to the folder that holds cityscapes (it is "
                f"{self.folder.parent} now), fetch the dataset as datasets/README.md shows, or "
                f"draw one: {shapes}"
            )
        converter = None
        if "panoptic" in file_name:
            converter = "createPanopticImgs"
        elif "labelTrainIds" in file_name:
            converter = "createTrainIdLabelImgs"
        if converter:
            setting = f"CITYSCAPES_DATASET={shlex.quote(str(self.folder))}"
            return f"make it with: {setting} {_TOOLS}{converter}"
        return (
            f"unpack Cityscapes' leftImg8bit and gtFine packages into {self.folder} as "
            f"datasets/README.md shows, or draw a dataset: {shapes}"
        )
