"""What a shapes scene is made of, and the class that stands for it in each dataset."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind of thing, one kind of ground, or one that no dataset evaluates.

    Attributes:
        name: the outline of a thing, or the texture of a ground.
        is_thing: whether each one is a segment of its own.
        hue: middle of its range of hues, in degrees.
        cityscapes: label name in cityscapesscripts.
        coco: category name in COCO panoptic, None if unlabelled.
        ade20k: value in ADE20K's annotation images, 1-150, 0 if unlabelled.
        ade20k_instance: value in the red channel of ADE20K's instance images, 1-100.
    """

    name: str
    is_thing: bool
    hue: float
    cityscapes: str
    coco: str | None
    ade20k: int
    ade20k_instance: int = 0


THINGS = (
    Kind("disk", True, 0, "person", "person", 13, 4),
    Kind("triangle", True, 187, "rider", "kite", 150, 100),
    Kind("square", True, 225, "car", "car", 21, 9),
    Kind("ell", True, 40, "truck", "truck", 84, 53),
    Kind("cross", True, 312, "bus", "bus", 81, 50),
    Kind("bar", True, 150, "train", "toothbrush", 91, 59),
    Kind("star", True, 112, "motorcycle", "clock", 117, 74),
    Kind("crescent", True, 270, "bicycle", "banana", 128, 83),
)

SKY = Kind("clouds", False, 205, "sky", "sky-other-merged", 3)
BUILDING = Kind("windows", False, 15, "building", "building-other-merged", 49)
TREES = Kind("leaves", False, 110, "vegetation", "tree-merged", 5)
ROAD = Kind("asphalt", False, 240, "road", "road", 7)
GRASS = Kind("grass", False, 70, "terrain", "grass-merged", 10)
WALL = Kind("planks", False, 35, "wall", "wall-other-merged", 1)
GROUNDS = (SKY, BUILDING, TREES, ROAD, GRASS, WALL)

CLUTTER = Kind("clutter", False, 0, "static", None, 0)
# Cityscapes counts caravans, but does not evaluate them.
WRECK = Kind("wreck", False, 55, "caravan", None, 0)
