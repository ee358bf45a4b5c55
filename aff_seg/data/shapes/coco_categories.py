"""The ``categories`` of COCO's annotation files: Detectron2's list plus the families."""

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

# Last id of each family of things; ids run in this order.
_LAST_THING_OF = {
    "person": 1,
    "vehicle": 9,
    "outdoor": 15,
    "animal": 25,
    "accessory": 33,
    "sports": 43,
    "kitchen": 51,
    "food": 61,
    "furniture": 71,
    "electronic": 77,
    "appliance": 83,
    "indoor": 90,
}
_STUFF_OF = {
    "textile": (92, 93, 109, 141, 168, 200),
    "building": (95, 128, 151, 166, 197),
    "raw-material": (100, 195),
    "furniture-stuff": (107, 112, 130, 133, 156, 161, 188, 189),
    "floor": (118, 190),
    "plant": (119, 184, 193),
    "food-stuff": (122, 196),
    "ground": (125, 144, 145, 147, 149, 154, 159, 191, 194),
    "structural": (138, 185),
    "water": (148, 155, 178),
    "wall": (171, 175, 176, 177, 199),
    "window": (180, 181),
    "ceiling": (186,),
    "sky": (187,),
    "solid": (192, 198),
}


def thing_categories() -> list[dict]:
    """The 80 entries of ``instances_*.json``."""
    return [
        {"supercategory": _family(c), "id": c["id"], "name": c["name"]}
        for c in COCO_CATEGORIES
        if c["isthing"]
    ]


def panoptic_categories() -> list[dict]:
    """The 133 entries of ``panoptic_*.json``."""
    return [
        {"supercategory": _family(c), "isthing": c["isthing"], "id": c["id"], "name": c["name"]}
        for c in COCO_CATEGORIES
    ]


def _family(category: dict) -> str:
    if category["isthing"]:
        return next(f for f, last in _LAST_THING_OF.items() if category["id"] <= last)
    return next(f for f, ids in _STUFF_OF.items() if category["id"] in ids)
