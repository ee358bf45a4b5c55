"""Feeds ground truth to the evaluators of all nine tasks, as it is and with shifted classes.

Run as a script with DETECTRON2_DATASETS set and the number of processes; prints the scores as JSON.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from cityscapesscripts.helpers.labels import id2label
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.transforms import TransformList
from detectron2.structures import BitMasks, Instances
from detectron2.utils import comm
from panopticapi.utils import rgb2id
from PIL import Image

from aff_seg.data import EvaluationMapper, check_datasets
from aff_seg.data.labels import InstanceLabels
from aff_seg.engine.launch import launch
from aff_seg.evaluation import build_evaluator, check_evaluators, summarize
from aff_seg.setup_cfg import load_cfg

TASKS = [
    f"{dataset}/{task}"
    for dataset in ("ade20k", "coco", "cityscapes")
    for task in ("semantic", "instance", "panoptic")
]


def perfect_output(record: dict, classes: np.ndarray, thing_ids: set[int]) -> dict:
    """What a model returns that knows the truth, but says ``classes[c]`` for class c."""
    if "pan_seg_file_name" in record:
        return _panoptic(record, classes, thing_ids)
    if "annotations" in record:
        return {"instances": _instances(*_objects(record), classes)}
    labels = np.asarray(Image.open(record["sem_seg_file_name"]))
    return {"sem_seg": _one_hot(labels, classes)}


def _panoptic(record: dict, classes: np.ndarray, thing_ids: set[int]) -> dict:
    ids = rgb2id(np.asarray(Image.open(record["pan_seg_file_name"])))
    labels = np.full(ids.shape, 255)
    infos, found = np.zeros(ids.shape, dtype=np.int32), []
    things, thing_masks = [], []
    for segment in record["segments_info"]:
        mask = ids == segment["id"]
        labels[mask] = segment["category_id"]
        if segment["iscrowd"]:
            continue
        infos[mask] = segment["id"]
        label = int(classes[segment["category_id"]])
        found.append({"id": segment["id"], "category_id": label, "isthing": label in thing_ids})
        if segment["category_id"] in thing_ids:
            things.append(segment["category_id"])
            thing_masks.append(mask)
    masks = torch.from_numpy(np.array(thing_masks, dtype=bool).reshape(-1, *ids.shape))
    return {
        "panoptic_seg": (torch.from_numpy(infos), found),
        "instances": _instances(torch.tensor(things, dtype=torch.int64), masks, classes),
        "sem_seg": _one_hot(labels, classes),
    }


def _objects(record: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes and masks of the annotations; of Cityscapes those of the images it is scored by."""
    if "leftImg8bit" not in record["file_name"]:
        size = (record["height"], record["width"])
        return InstanceLabels(dict(record), size, 255).targets(TransformList([]), size, size)
    path = record["file_name"].replace("/leftImg8bit/", "/gtFine/")
    ids = np.array(Image.open(path.replace("_leftImg8bit", "_gtFine_instanceIds"))).astype(int)
    things = [
        label.id for label in id2label.values() if label.hasInstances and not label.ignoreInEval
    ]
    numbers = [n for n in np.unique(ids) if n >= 1000 and n // 1000 in things]
    masks = np.array([ids == n for n in numbers], dtype=bool).reshape(-1, *ids.shape)
    found = torch.tensor([things.index(n // 1000) for n in numbers], dtype=torch.int64)
    return found, torch.from_numpy(masks)


def _instances(labels: torch.Tensor, masks: torch.Tensor, classes: np.ndarray) -> Instances:
    instances = Instances(tuple(masks.shape[1:]), pred_masks=masks, scores=torch.ones(len(masks)))
    instances.pred_boxes = BitMasks(masks).get_bounding_boxes()
    instances.pred_classes = torch.from_numpy(classes)[labels]
    return instances


def _one_hot(labels: np.ndarray, classes: np.ndarray) -> torch.Tensor:
    said = classes[np.minimum(labels, len(classes) - 1)]
    said[labels >= len(classes)] = -1
    return torch.from_numpy(said == np.arange(len(classes))[:, None, None]).float()


def score(cfg: CfgNode, even: np.ndarray, odd: np.ndarray) -> dict[str, float]:
    """Scores where class c is said to be ``even[c]`` and ``odd[c]`` in turn, image by image.

    Processes share the images; the main one gets the scores, others nothing.
    """
    name = cfg.DATASETS.TEST[0]
    things = MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id", {}).values()
    mapper = EvaluationMapper(cfg, is_train=False)
    evaluator = build_evaluator(cfg, name, str(Path(cfg.OUTPUT_DIR) / name))
    evaluator.reset()
    for number, record in enumerate(DatasetCatalog.get(name)):
        if number % comm.get_world_size() == comm.get_rank():
            output = perfect_output(record, odd if number % 2 else even, set(things))
            evaluator.process([mapper(record)], [output])
    results = evaluator.evaluate()
    return summarize(results) if comm.is_main_process() else {}


def main(arguments: SimpleNamespace) -> None:
    scores = {}
    for task in TASKS:
        output = os.path.join(os.environ["DETECTRON2_DATASETS"], "scores")
        opts = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", output]
        cfg = load_cfg(f"configs/{task}/aff_mini.yaml", opts)
        check_datasets(cfg)
        check_evaluators(cfg)
        same = np.arange(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)
        shifted = np.roll(same, 1)
        scores[task] = {
            "perfect": score(cfg, same, same),
            "shifted": score(cfg, shifted, shifted),
            "partly": score(cfg, shifted, same),
        }
    if comm.is_main_process():
        print("SCORES " + json.dumps(scores))


if __name__ == "__main__":
    places = {"num_machines": 1, "machine_rank": 0, "dist_url": "auto"}
    launch(main, SimpleNamespace(num_gpus=int(sys.argv[1]), **places))
