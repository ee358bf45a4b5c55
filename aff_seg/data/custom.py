"""Datasets of the user's own, registered from ``DATASETS.CUSTOM`` of a config."""

import difflib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import zip_longest

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from tqdm import tqdm

from aff_seg.architectures import detectron2_architecture, outputs_of
from aff_seg.data.labels import read_label_image
from aff_seg.data.loaders import (
    Records,
    list_images,
    load_instances,
    load_panoptic,
    load_semantic,
    read_json,
)
from aff_seg.data.metadata import instance_metadata, panoptic_metadata, semantic_metadata
from aff_seg.errors import UserError

_REQUIRED = ("NAME", "KIND", "IMAGES", "ANNOTATIONS")
_PATHS = ("IMAGES", "ANNOTATIONS", "SEGMENTS")
_KEYS = (*_REQUIRED, "SEGMENTS", "CLASSES", "COLORS")

# Entries registered so far in this process, by name.
_registered: dict[str, dict] = {}


def register_custom(cfg: CfgNode) -> None:
    """Register the entries of ``DATASETS.CUSTOM`` that the config trains or tests on.

    ``CLASSES`` of the entries in ``cfg`` become full lists of categories, so that a saved config
    needs no annotation files, and ``MODEL.SEM_SEG_HEAD.NUM_CLASSES``, or where the architecture of
    the model counts its classes, is set to their number.

    Args:
        cfg: with the keys of this project; changed in place.

    Raises:
        UserError: an entry is wrong, or its classes cannot be read.
    """
    used = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    entries = [_checked(entry, place) for place, entry in enumerate(cfg.DATASETS.CUSTOM)]
    names = [entry["NAME"] for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"DATASETS.CUSTOM has two entries with NAME {name}; rename one.")
    chosen = {entry["NAME"]: entry for entry in entries if entry["NAME"] in used}
    _complete_semantic(list(chosen.values()), cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE)
    for entry in chosen.values():
        entry["CLASSES"] = _categories(entry)
        entry.pop("COLORS", None)
        _register(entry, cfg)
    _check_same_classes(list(chosen.values()))
    cfg.DATASETS.CUSTOM = entries
    if used and used[0] in chosen:
        part = _counting_part(cfg, chosen[used[0]])
        cfg.MODEL[part].NUM_CLASSES = len(chosen[used[0]]["CLASSES"])


def _counting_part(cfg: CfgNode, entry: dict) -> str:
    """Part of ``MODEL`` whose ``NUM_CLASSES`` counts the classes of an entry."""
    architecture = detectron2_architecture(cfg)
    if architecture is None or not architecture.outputs:
        return "SEM_SEG_HEAD"
    part = {"coco": architecture.things, "semantic": architecture.stuff}.get(entry["KIND"])
    # Both together is a form of its own, see Detectron2's "separated" COCO.
    if part is None or (architecture.things and architecture.stuff):
        raise UserError(
            f"DATASETS.CUSTOM {entry['NAME']} has KIND {entry['KIND']}, which is not for "
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}; detectors take coco, "
            "SemanticSegmentor takes semantic, MaskFormer takes each."
        )
    return part


def _checked(entry: dict, place: int) -> dict:
    """A copy of an entry with known keys only and all that it needs."""
    where = f"DATASETS.CUSTOM[{place}]"
    if not isinstance(entry, dict):
        raise UserError(f"{where} is {entry!r}; it must hold {', '.join(_REQUIRED)}.")
    for key in entry:
        if key not in _KEYS:
            close = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(_KEYS)}."
            raise UserError(f"{where} has the unknown key {key}; {hint}")
    for key in (*_REQUIRED, *(["SEGMENTS"] if "SEGMENTS" in entry else [])):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise UserError(f"{where}.{key} is {entry.get(key)!r}; it must be a text.")
    if entry["KIND"] not in KINDS:
        raise UserError(f"{where}.KIND is {entry['KIND']!r}; it must be one of {', '.join(KINDS)}.")
    name = entry["NAME"]
    if name in DatasetCatalog and name not in _registered:
        raise UserError(f"{where}.NAME is {name}, a dataset that is there already; rename it.")
    classes = entry.get("CLASSES") or []
    if not isinstance(classes, list) or len({isinstance(c, dict) for c in classes}) > 1:
        raise UserError(f"{where}.CLASSES must be a list of names or of categories.")
    paths = {key: os.path.expanduser(entry[key]) for key in _PATHS if entry.get(key)}
    return {**entry, **paths}


def _check_same_classes(entries: Sequence[dict]) -> None:
    """Data sets used together must count the same classes."""
    for entry in entries[1:]:
        names, others = ([c["name"] for c in e["CLASSES"]] for e in (entries[0], entry))
        for index, (name, other) in enumerate(zip_longest(names, others)):
            if name != other:
                raise UserError(
                    f"Class {index} is {name} in dataset {entries[0]['NAME']}, but {other} in "
                    f"{entry['NAME']}; list the same categories, or name them with CLASSES."
                )


# Classes


def _categories(entry: dict) -> list[dict]:
    """The classes of an entry in the order in which the model counts them."""
    given = entry.get("CLASSES")
    if given and isinstance(given[0], dict):
        categories = [_category(c, f"CLASSES of {entry['NAME']}") for c in given]
    elif entry["KIND"] == "semantic":
        categories = [{"id": i, "name": str(name)} for i, name in enumerate(given)]
    else:
        path = entry["ANNOTATIONS"]
        found = read_json(path, "categories")["categories"]
        categories = sorted((_category(c, path) for c in found), key=lambda c: c["id"])
        _rename(categories, given, entry)
    if not categories:
        raise UserError(f"Dataset {entry['NAME']} has no classes; {_ADD_CLASSES}.")
    ids = [c["id"] for c in categories]
    if len(set(ids)) < len(ids):
        raise UserError(f"Dataset {entry['NAME']} has two categories of one id; correct them.")
    if entry["KIND"] == "coco_panoptic" and any("isthing" not in c for c in categories):
        raise UserError(f"{entry['ANNOTATIONS']} does not say of each category whether it isthing.")
    if entry["KIND"] == "semantic" and ids != list(range(len(ids))):
        raise UserError(
            f"CLASSES of {entry['NAME']} have the ids {ids}; those of label images are 0, 1, 2 and "
            "so on, in this order."
        )
    _colour(categories, entry)
    return categories


_ADD_CLASSES = "list its categories, or set CLASSES in its entry of DATASETS.CUSTOM"


def _category(category: dict, where: str) -> dict:
    """What is needed of a category; a colour in another form than COCO's is left out."""
    known = category if isinstance(category, dict) else {}
    if not isinstance(known.get("id"), int) or "name" not in known:
        raise UserError(
            f"{where}: the category {category!r:.80} must have a whole number as id, and a name."
        )
    keys = ("id", "name", "isthing", *(["color"] if _is_colour(known.get("color")) else []))
    return {key: known[key] for key in keys if key in known}


def _is_colour(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(isinstance(part, int) and 0 <= part <= 255 for part in value)
    )


def _rename(categories: list[dict], names: Sequence[str] | None, entry: dict) -> None:
    if not names:
        return
    if len(names) != len(categories):
        raise UserError(
            f"Dataset {entry['NAME']} has {len(categories)} categories, but CLASSES names "
            f"{len(names)}; name each of {entry['ANNOTATIONS']} in the order of their ids."
        )
    for category, name in zip(categories, names, strict=True):
        category["name"] = str(name)


def _colour(categories: list[dict], entry: dict) -> None:
    colours = entry.get("COLORS")
    if not colours:
        return
    if len(colours) != len(categories) or not all(_is_colour(colour) for colour in colours):
        raise UserError(
            f"COLORS of dataset {entry['NAME']} must hold [red, green, blue], 0 to 255, for "
            f"each of its {len(categories)} classes."
        )
    for category, colour in zip(categories, colours, strict=True):
        category["color"] = list(colour)


def _complete_semantic(entries: Sequence[dict], ignore_label: int) -> None:
    """Give CLASSES to the entries of label images that have none.

    They take those of the first that has some; else classes are numbered up to the highest label
    of all.
    """
    semantic = [entry for entry in entries if entry["KIND"] == "semantic"]
    bare = [entry for entry in semantic if not entry.get("CLASSES")]
    if not bare:
        return
    classes = next((e["CLASSES"] for e in semantic if e.get("CLASSES")), None)
    if classes is None:
        folders = [entry["ANNOTATIONS"] for entry in bare]
        highest = max(_highest_label(folder, ignore_label) for folder in folders)
        if highest < 0:
            raise UserError(
                f"The label images of {' and '.join(folders)} hold nothing but {ignore_label}, "
                "which is ignored; correct them or MODEL.SEM_SEG_HEAD.IGNORE_VALUE."
            )
        classes = [f"class {i}" for i in range(highest + 1)]
    for entry in bare:
        entry["CLASSES"] = classes


def _highest_label(folder: str, ignore_label: int) -> int:
    """The highest label in the images of a folder, -1 where all are ignored."""
    paths = list_images(folder).values()

    def highest(path: str) -> int:
        labels = read_label_image(path).astype(np.int64)
        return int(labels.max(where=labels != ignore_label, initial=-1))

    title = f"counting the classes in {folder}"
    with ThreadPoolExecutor() as pool:
        found = pool.map(highest, paths)
        return max(tqdm(found, title, len(paths), disable=not comm.is_main_process()))


# Registration


def _register(entry: dict, cfg: CfgNode) -> None:
    name = entry["NAME"]
    if name in _registered:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)
    load, metadata = KINDS[entry["KIND"]](entry, cfg)
    ignore_label = cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(image_root=entry["IMAGES"], ignore_label=ignore_label, **metadata)
    _registered[name] = entry


def _coco(entry: dict, cfg: CfgNode) -> "Registration":
    metadata = instance_metadata(entry["CLASSES"], _colours(entry))
    things = metadata["thing_dataset_id_to_contiguous_id"]
    path = entry["ANNOTATIONS"]
    metadata |= {"evaluator_type": "coco", "json_file": path}
    boxes_alone = "boxes" in outputs_of(cfg)
    load = partial(load_instances, path, entry["IMAGES"], things, boxes_alone=boxes_alone)
    return load, metadata


def _coco_panoptic(entry: dict, cfg: CfgNode) -> "Registration":
    metadata = panoptic_metadata(entry["CLASSES"], _colours(entry))
    path = entry["ANNOTATIONS"]
    segments = entry.get("SEGMENTS") or path.removesuffix(".json")
    load = partial(
        load_panoptic,
        path,
        entry["IMAGES"],
        segments,
        things=metadata["thing_dataset_id_to_contiguous_id"],
        classes=metadata["stuff_dataset_id_to_contiguous_id"],
    )
    metadata |= {
        "evaluator_type": "coco_panoptic_seg",
        "panoptic_json": path,
        "panoptic_root": segments,
    }
    return load, metadata


def _semantic(entry: dict, cfg: CfgNode) -> "Registration":
    metadata = semantic_metadata(entry["CLASSES"], _colours(entry))
    labels = entry["ANNOTATIONS"]
    metadata |= {"evaluator_type": "sem_seg", "sem_seg_root": labels}
    return partial(load_semantic, entry["IMAGES"], labels), metadata


def _colours(entry: dict) -> list | None:
    colours = [category.get("color") for category in entry["CLASSES"]]
    return None if None in colours else colours


Registration = tuple[Callable[[], Records], dict]
KINDS: dict[str, Callable[[dict, CfgNode], Registration]] = {
    "coco": _coco,
    "coco_panoptic": _coco_panoptic,
    "semantic": _semantic,
}
