"""Datasets that Detectron2 does not register, and what it does not know of those that it does.

Importing this module registers them below the folder that ``DETECTRON2_DATASETS`` names. Files
are read when a dataset is first asked for.
"""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from cityscapesscripts.helpers import labels as cityscapes_labels
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import cityscapes
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES, COCO_CATEGORIES

from aff_seg.data import ade20k
from aff_seg.data.loaders import load_instances, load_panoptic
from aff_seg.data.metadata import instance_metadata, panoptic_metadata

IGNORE_LABEL = 255
# The name under which the head of Detectron2's repository imports the labels of Cityscapes, from
# a package that is not public.
_INTERNAL_LABELS = "deeplearning.projects.cityscapesApi.cityscapesscripts.helpers.labels"


class ClosedPools:
    """What Detectron2 needs of ``multiprocessing`` to read Cityscapes' instances.

    It leaves its pool of processes open, and the program can hang when that is collected.
    """

    cpu_count = staticmethod(os.cpu_count)

    class Pool:
        def __init__(self, processes: int):
            self._processes = processes

        def map(self, function: Callable, items: list) -> list:
            with ProcessPoolExecutor(self._processes) as pool:
                return list(pool.map(function, items, chunksize=8))


def register_builtin(root: str) -> None:
    """Register ADE20K instance and panoptic, and COCO panoptic with label images.

    Args:
        root: folder of ``ADEChallengeData2016`` and ``coco``.
    """
    for split, folder in (("train", "training"), ("val", "validation")):
        _register_ade20k(os.path.join(root, "ADEChallengeData2016"), split, folder)
        _register_coco(os.path.join(root, "coco"), split)
        _colour_cityscapes(split)
    sys.modules.setdefault(_INTERNAL_LABELS, cityscapes_labels)
    cityscapes.mp = ClosedPools


def _register_ade20k(top: str, split: str, folder: str) -> None:
    MetadataCatalog.get(f"ade20k_sem_seg_{split}").stuff_colors = ade20k.PALETTE
    image_root = os.path.join(top, "images", folder)
    instances = os.path.join(top, f"ade20k_instance_{split}.json")
    _register_panoptic(
        f"ade20k_panoptic_{split}",
        evaluator_type="ade20k_panoptic_seg",
        categories=ade20k.panoptic_categories(),
        image_root=image_root,
        panoptic_root=os.path.join(top, f"ade20k_panoptic_{split}"),
        sem_seg_root=os.path.join(top, "annotations_detectron2", folder),
        json_file=instances,
        panoptic_json=os.path.join(top, f"ade20k_panoptic_{split}.json"),
    )
    colours = [ade20k.PANOPTIC_PALETTE[i] for i in ade20k.THINGS]
    metadata = instance_metadata(ade20k.instance_categories(), colours)
    things = metadata["thing_dataset_id_to_contiguous_id"]
    name = f"ade20k_instance_{split}"
    DatasetCatalog.register(name, partial(load_instances, instances, image_root, things))
    MetadataCatalog.get(name).set(
        evaluator_type="coco", image_root=image_root, json_file=instances, **metadata
    )


def _register_coco(top: str, split: str) -> None:
    annotations = os.path.join(top, "annotations")
    _register_panoptic(
        f"coco_2017_{split}_panoptic_with_sem_seg",
        evaluator_type="coco_panoptic_seg",
        categories=COCO_CATEGORIES,
        image_root=os.path.join(top, f"{split}2017"),
        panoptic_root=os.path.join(top, f"panoptic_{split}2017"),
        sem_seg_root=os.path.join(top, f"panoptic_semseg_{split}2017"),
        json_file=os.path.join(annotations, f"instances_{split}2017.json"),
        panoptic_json=os.path.join(annotations, f"panoptic_{split}2017.json"),
    )


def _colour_cityscapes(split: str) -> None:
    things = [c["color"] for c in CITYSCAPES_CATEGORIES if c["isthing"]]
    MetadataCatalog.get(f"cityscapes_fine_instance_seg_{split}").thing_colors = things
    every = [c["color"] for c in CITYSCAPES_CATEGORIES]
    MetadataCatalog.get(f"cityscapes_fine_sem_seg_{split}").stuff_colors = every


def _register_panoptic(
    name: str, *, evaluator_type: str, categories: list[dict], **paths: str
) -> None:
    metadata = panoptic_metadata(categories, [c["color"] for c in categories])
    load = partial(
        load_panoptic,
        paths["panoptic_json"],
        paths["image_root"],
        paths["panoptic_root"],
        things=metadata["thing_dataset_id_to_contiguous_id"],
        classes=metadata["stuff_dataset_id_to_contiguous_id"],
        sem_seg_root=paths["sem_seg_root"],
    )
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        evaluator_type=evaluator_type, ignore_label=IGNORE_LABEL, **paths, **metadata
    )


register_builtin(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
