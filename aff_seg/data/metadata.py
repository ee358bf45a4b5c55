"""Names, colours and ids of classes, as Detectron2's metadata holds them.

A model counts classes from 0 in the order of a dataset's categories. ``thing_*`` lists hold things
only; ``stuff_*`` lists of panoptic and semantic datasets hold every class.
"""

from collections.abc import Sequence

from detectron2.data.catalog import Metadata

# Panoptic ids in Detectron2's own form are class * divisor + number.
LABEL_DIVISOR = 1000

Colours = Sequence[Sequence[int]]


def instance_metadata(categories: Sequence[dict], colours: Colours | None) -> dict:
    """Metadata of a dataset whose classes are all things.

    Args:
        categories: ``{"id": ..., "name": ...}`` in the order of the classes.
        colours: [red, green, blue] of each, if there are any.
    """
    metadata = {
        "thing_classes": [c["name"] for c in categories],
        "thing_dataset_id_to_contiguous_id": _id_map(categories),
    }
    if colours is not None:
        metadata["thing_colors"] = [list(c) for c in colours]
    return metadata


def panoptic_metadata(categories: Sequence[dict], colours: Colours | None) -> dict:
    """Metadata of a dataset of things and stuff.

    Args:
        categories: ``{"id": ..., "name": ..., "isthing": ...}`` in the order of the classes.
        colours: [red, green, blue] of each, if there are any.
    """
    ids = _id_map(categories)
    things = [i for i, c in enumerate(categories) if c["isthing"]]
    metadata = {
        "thing_classes": [categories[i]["name"] for i in things],
        "thing_dataset_id_to_contiguous_id": {categories[i]["id"]: i for i in things},
        "stuff_classes": [c["name"] for c in categories],
        "stuff_dataset_id_to_contiguous_id": ids,
        "label_divisor": LABEL_DIVISOR,
    }
    if colours is not None:
        metadata["thing_colors"] = [list(colours[i]) for i in things]
        metadata["stuff_colors"] = [list(c) for c in colours]
    return metadata


def semantic_metadata(categories: Sequence[dict], colours: Colours | None) -> dict:
    """Metadata of a dataset of label images, whose pixels are classes; see the others."""
    metadata = {"stuff_classes": [c["name"] for c in categories]}
    if colours is not None:
        metadata["stuff_colors"] = [list(c) for c in colours]
    return metadata


def class_attribute(metadata: Metadata, kind: str, category_id: int, is_thing: bool):
    """The entry of a class in the lists of names or colours, None where there is none.

    Args:
        metadata: of a dataset.
        kind: "classes" or "colors".
        category_id: the class as the model counts.
        is_thing: whether it is a thing.
    """
    things, everything = (metadata.get(f"{group}_{kind}", None) for group in ("thing", "stuff"))
    # Panoptic datasets count things among all classes, of which stuff_* has every one.
    thing_ids = metadata.get("thing_dataset_id_to_contiguous_id", {}).values()
    among_all = bool(everything and thing_ids) and max(thing_ids) < len(everything)
    entries = (everything if among_all or not is_thing else things) or ()
    return entries[category_id] if category_id < len(entries) else None


def class_name(metadata: Metadata, category_id: int, is_thing: bool) -> str:
    """The name of a class, or ``class <index>`` where the dataset gives none."""
    return class_attribute(metadata, "classes", category_id, is_thing) or f"class {category_id}"


def _id_map(categories: Sequence[dict]) -> dict[int, int]:
    return {c["id"]: i for i, c in enumerate(categories)}
