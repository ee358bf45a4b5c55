"""Feeds the ground truth of a Cityscapes panoptic split to Detectron2's own evaluators.

Run as a script with DETECTRON2_DATASETS set; prints the scores as JSON.
"""

import json
import sys

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluators,
)
from detectron2.structures import Instances
from panopticapi.utils import rgb2id
from PIL import Image


def perfect_output(record: dict, thing_ids: set[int], num_classes: int) -> dict:
    """What a model would return that knows the ground truth of ``record``."""
    ids = torch.from_numpy(rgb2id(np.asarray(Image.open(record["pan_seg_file_name"]))))
    single = [info for info in record["segments_info"] if not info["iscrowd"]]
    known = torch.tensor([info["id"] for info in single])
    panoptic = torch.where(torch.isin(ids, known), ids, 0).to(torch.int32)
    things = [info for info in single if info["category_id"] in thing_ids]
    instances = Instances(tuple(ids.shape))
    instances.pred_masks = torch.stack([ids == info["id"] for info in things])
    instances.pred_classes = torch.tensor([info["category_id"] for info in things])
    instances.scores = torch.ones(len(things))
    classes = torch.from_numpy(np.asarray(Image.open(record["sem_seg_file_name"])).astype(int))
    return {
        "panoptic_seg": (
            panoptic,
            [
                {
                    "id": info["id"],
                    "category_id": info["category_id"],
                    "isthing": info["category_id"] in thing_ids,
                }
                for info in single
            ],
        ),
        "instances": instances,
        "sem_seg": torch.stack([classes == k for k in range(num_classes)]).float(),
    }


def main(name: str) -> None:
    metadata = MetadataCatalog.get(name)
    thing_ids = set(metadata.thing_dataset_id_to_contiguous_id.values())
    evaluator = DatasetEvaluators(
        [
            COCOPanopticEvaluator(name),
            CityscapesInstanceEvaluator(name),
            CityscapesSemSegEvaluator(name),
        ]
    )
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        output = perfect_output(record, thing_ids, len(metadata.stuff_classes))
        evaluator.process([record], [output])
    print("SCORES " + json.dumps(evaluator.evaluate()))


if __name__ == "__main__":
    main(sys.argv[1])
