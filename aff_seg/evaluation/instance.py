"""Average precision in COCO's way, for any category ids."""

from detectron2.data.catalog import Metadata
from detectron2.evaluation import COCOEvaluator
from pycocotools import mask as mask_util
from pycocotools.cocoeval import COCOeval

from aff_seg.errors import UserError

TASKS = ("bbox", "segm")


class InstanceEvaluator(COCOEvaluator):
    """Detectron2's evaluator, for classes with gaps and for sparse annotation files.

    Things of a panoptic dataset need not be the first classes; other classes are not scored.
    Annotations may lack ``area`` and ``iscrowd``. Nothing found where there is something scores 0.

    Args:
        dataset_name: registered name; its metadata has ``json_file`` and, unless the model counts
            as the file does, ``thing_dataset_id_to_contiguous_id``.
        output_dir: gets the predictions, or None.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None):
        super().__init__(dataset_name, TASKS, output_dir=output_dir)
        self._dataset = self._metadata
        categories = self._coco_api.loadCats(sorted(self._coco_api.getCatIds()))
        # Detectron2 takes ids from here, which must count from 0, and names in the file's order.
        self._metadata = Metadata(
            name=dataset_name, thing_classes=[category["name"] for category in categories]
        )
        for annotation in self._coco_api.anns.values():
            if annotation["image_id"] in self._coco_api.imgs:
                self._complete(annotation)

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

    def _complete(self, annotation: dict) -> None:
        """Add what COCO's scores need and can be told from the mask."""
        if not annotation.get("segmentation"):
            raise UserError(
                f"{self._dataset.json_file}: annotation {annotation['id']} has no segmentation; "
                "give it polygons or RLE, or remove it."
            )
        annotation.setdefault("iscrowd", 0)
        if not {"area", "bbox"} <= annotation.keys():
            mask = self._coco_api.annToRLE(annotation)
            annotation.setdefault("area", float(mask_util.area(mask)))
            annotation.setdefault("bbox", mask_util.toBbox(mask).tolist())

    def _derive_coco_results(
        self, coco_eval: COCOeval | None, iou_type: str, class_names: list[str] | None = None
    ) -> dict[str, float]:
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        if coco_eval is None and any(not a["iscrowd"] for a in self._coco_api.anns.values()):
            return dict.fromkeys(results, 0.0)
        return results
