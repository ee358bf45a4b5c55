"""Small datasets in COCO's forms and as label images, for tests.

Category ids have gaps, a thing comes between stuff, and there is an image without objects.
"""

import json

import numpy as np
from panopticapi.utils import id2rgb
from PIL import Image
from pycocotools import mask as mask_util

SIZE = (40, 56)
CATEGORIES = [
    {"id": 3, "name": "grass", "isthing": 0, "color": [0, 200, 0]},
    {"id": 7, "name": "cat", "isthing": 1, "color": [200, 0, 0]},
    {"id": 20, "name": "sky", "isthing": 0, "color": [0, 0, 200]},
    {"id": 21, "name": "dog", "isthing": 1, "color": [90, 90, 0]},
]
THINGS = [c for c in CATEGORIES if c["isthing"]]
# Name of an image: (segment id, category id, crowd, rows, columns) of its segments.
SCENES = {
    "first": [
        (1, 20, 0, slice(0, 15), slice(0, 56)),
        (2, 3, 0, slice(15, 40), slice(0, 56)),
        (300, 7, 0, slice(10, 30), slice(5, 20)),
        (70000, 21, 0, slice(12, 35), slice(30, 50)),
    ],
    "crowded": [
        (5, 3, 0, slice(0, 40), slice(0, 56)),
        (6, 21, 1, slice(0, 10), slice(0, 40)),
        (7, 21, 0, slice(20, 39), slice(3, 33)),
    ],
    "empty": [(9, 20, 0, slice(0, 40), slice(0, 40))],
}


def segment_ids(name):
    """uint32 (h, w) of a scene, 0 where nothing is labelled."""
    ids = np.zeros(SIZE, dtype=np.uint32)
    for number, _, _, rows, columns in SCENES[name]:
        ids[rows, columns] = number
    return ids


def write_small_sets(root):
    """Write images, and their annotations in the three forms, below ``root`` (a Path)."""
    for folder in ("images", "panoptic", "labels"):
        (root / folder).mkdir(parents=True)
    images, panoptic, instances = [], [], []
    for image_id, (name, scene) in enumerate(SCENES.items(), start=11):
        ids = segment_ids(name)
        noise = np.random.default_rng(image_id).integers(0, 40, (*SIZE, 3))
        picture = (id2rgb(ids * 77) // 2 + noise).astype(np.uint8)
        Image.fromarray(picture).save(root / "images" / f"{name}.jpg")
        Image.fromarray(id2rgb(ids)).save(root / "panoptic" / f"{name}.png")
        labels = np.full(SIZE, 255, dtype=np.uint8)
        infos = []
        for number, category, crowd, _, _ in scene:
            mask = ids == number
            labels[mask] = [c["id"] for c in CATEGORIES].index(category)
            info = {"id": number, "category_id": category, "iscrowd": crowd}
            infos.append({**info, "area": int(mask.sum())})
            if category in (c["id"] for c in THINGS):
                rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
                rle["counts"] = rle["counts"].decode()
                # Without area and box, as some tools leave them.
                entry = {"image_id": image_id, "segmentation": rle, **info}
                instances.append({**entry, "id": len(instances) + 1})
        Image.fromarray(labels).save(root / "labels" / f"{name}.png")
        size = {"height": SIZE[0], "width": SIZE[1]}
        images.append({"id": image_id, "file_name": f"{name}.jpg", **size})
        entry = {"image_id": image_id, "file_name": f"{name}.png", "segments_info": infos}
        panoptic.append(entry)
    for file, annotations, categories in (
        ("panoptic.json", panoptic, CATEGORIES),
        ("instances.json", instances, THINGS),
    ):
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / file).write_text(json.dumps(content))


def entry_of(kind, root, name="small", **changes):
    """An entry of DATASETS.CUSTOM."""
    annotations = {"coco": "instances.json", "coco_panoptic": "panoptic.json", "semantic": "labels"}
    return {
        "NAME": name,
        "KIND": kind,
        "IMAGES": str(root / "images"),
        "ANNOTATIONS": str(root / annotations[kind]),
        **changes,
    }
