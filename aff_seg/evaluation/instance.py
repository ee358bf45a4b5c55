"""Average precision in COCO's way, for any category ids."""

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.evaluation import COCOEvaluator
from panopticapi.utils import rgb2id
from pycocotools import mask as mask_util
from pycocotools.cocoeval import COCOeval

from aff_seg.data.labels import read_picture
from aff_seg.data.loaders import whole_polygons
from aff_seg.errors import UserError

TASKS = ("bbox", "segm")


class InstanceEvaluator(COCOEvaluator):
    """Detectron2's evaluator, for classes with gaps and for sparse annotation files.

    Things of a panoptic dataset need not be the first classes; other classes are not scored.
    Annotations may lack ``area`` and ``iscrowd``. Nothing found where there is something scores 0.

    Args:
        dataset_name: registered name. Its metadata has ``json_file``, else its records have
            panoptic images, of which the things are the ground truth; and, unless the model counts
            as the file does, ``thing_dataset_id_to_contiguous_id``.
        output_dir: gets the predictions, or None.
        tasks: "bbox" and "segm", or the former alone, for which annotations need no masks.
    """

    def __init__(
        self, dataset_name: str, output_dir: str | None = None, *, tasks: tuple[str, ...] = TASKS
    ):
        self._dataset = MetadataCatalog.get(dataset_name)
        with _annotations_of(self._dataset) as path:
            # Detectron2 asks the catalog for the file.
            alias = f"{dataset_name} instances"
            MetadataCatalog[alias] = Metadata(name=alias, json_file=path)
            super().__init__(alias, tasks, output_dir=output_dir)
            MetadataCatalog.remove(alias)
        categories = self._coco_api.loadCats(sorted(self._coco_api.getCatIds()))
        # Detectron2 takes ids from here, which must count from 0, and names in the file's order.
        self._metadata = Metadata(
            name=dataset_name, thing_classes=[category["name"] for category in categories]
        )
        # COCO's scores take an object of id 0 for none.
        truth = [{**a, "id": number} for number, a in enumerate(self._ground_truth(), start=1)]
        self._coco_api.dataset["annotations"] = truth
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco_api.createIndex()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Note the instances of a batch, with the category ids of the annotation file."""
        before = len(self._predictions)
        super().process(inputs, outputs)
        things = self._dataset.get("thing_dataset_id_to_contiguous_id")
        if things is None:
            return
        id_of = {index: category_id for category_id, index in things.items()}
        for prediction in self._predictions[before:]:
            known = [p for p in prediction["instances"] if p["category_id"] in id_of]
            for instance in known:
                instance["category_id"] = id_of[instance["category_id"]]
            prediction["instances"] = known

    def _ground_truth(self) -> Iterator[dict]:
        """The objects to find, with what COCO's scores need and can be told from the mask.

        As in training, polygons of less than three points are left out, and objects that have no
        others.
        """
        for annotation in self._coco_api.dataset["annotations"]:
            if annotation["image_id"] not in self._coco_api.imgs:
                continue
            if self._tasks == ("bbox",) and "bbox" in annotation:
                area = annotation["bbox"][2] * annotation["bbox"][3]
                yield {"iscrowd": 0, "area": area, **annotation}
                continue
            segmentation = annotation.get("segmentation")
            if not segmentation:
                raise UserError(
                    f"{self._dataset.json_file}: annotation {annotation['id']} has no "
                    "segmentation; give it polygons or RLE, or remove it."
                )
            if isinstance(segmentation, list):
                segmentation = whole_polygons(segmentation)
                if not segmentation:
                    continue
            truth = {"iscrowd": 0, **annotation, "segmentation": segmentation}
            if "area" not in truth or not truth.get("bbox"):
                mask = self._coco_api.annToRLE(truth)
                truth = {"area": float(mask_util.area(mask)), **truth}
                truth["bbox"] = truth.get("bbox") or mask_util.toBbox(mask).tolist()
            yield truth

    def _derive_coco_results(
        self, coco_eval: COCOeval | None, iou_type: str, class_names: list[str] | None = None
    ) -> dict[str, float]:
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        if coco_eval is None and any(not a["iscrowd"] for a in self._coco_api.anns.values()):
            return dict.fromkeys(results, 0.0)
        return results


@contextlib.contextmanager
def _annotations_of(dataset: Metadata) -> Iterator[str]:
    """The path of a file of instances in COCO's form, made for a while where there is none."""
    if dataset.get("json_file") is not None:
        yield dataset.json_file
        return
    with tempfile.TemporaryDirectory(prefix="instances_") as folder:
        path = os.path.join(folder, "instances.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(_things_of(DatasetCatalog.get(dataset.name), dataset), file)
        yield path


def _things_of(records: list[dict], dataset: Metadata) -> dict:
    """The things of panoptic records in COCO's form of instances."""
    id_of = {index: id for id, index in dataset.thing_dataset_id_to_contiguous_id.items()}
    names = {id: dataset.stuff_classes[index] for index, id in id_of.items()}
    images, annotations = [], []
    with ThreadPoolExecutor() as pool:
        found = pool.map(_thing_masks, records)
        for record, (height, width, segments) in zip(records, found, strict=True):
            image = {"id": record["image_id"], "file_name": record["file_name"]}
            images.append({**image, "height": height, "width": width})
            for segment, rle in segments:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": record["image_id"],
                        "category_id": id_of[segment["category_id"]],
                        "iscrowd": segment.get("iscrowd", 0),
                        "segmentation": {**rle, "counts": rle["counts"].decode()},
                    }
                )
    categories = [{"id": id, "name": name} for id, name in names.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _thing_masks(record: dict) -> tuple[int, int, list[tuple[dict, dict]]]:
    """Height and width of an image, and its segments that are things with their RLE."""
    ids = rgb2id(read_picture(record["pan_seg_file_name"], "RGB"))
    things = [segment for segment in record["segments_info"] if segment["isthing"]]
    masks = (np.asfortranarray(ids == segment["id"], dtype=np.uint8) for segment in things)
    return *ids.shape, [(s, mask_util.encode(m)) for s, m in zip(things, masks, strict=True)]
