"""Intersection over union of classes, on datasets with label images or panoptic ones."""

import json
import logging
import os
from collections import OrderedDict

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from panopticapi.utils import rgb2id

from aff_seg.data.labels import read_label_image, read_picture
from aff_seg.errors import UserError

logger = logging.getLogger(__name__)


class SemanticEvaluator(DatasetEvaluator):
    """Mean IoU over the classes that occur in the ground truth, as Detectron2 counts it.

    Args:
        dataset_name: registered name; its metadata has ``stuff_classes``, all of them, and
            ``ignore_label``. Records have a label image, or else a panoptic one.
        output_dir: gets ``semantic_confusion.json``, or None.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None):
        self._metadata = MetadataCatalog.get(dataset_name)
        self._records = {r["file_name"]: r for r in DatasetCatalog.get(dataset_name)}
        self._classes = self._metadata.stuff_classes
        self._output_dir = output_dir

    def reset(self) -> None:
        """Forget all images."""
        count = len(self._classes)
        # Pixels by class in the ground truth and predicted class.
        self._confusion = np.zeros((count, count), dtype=np.int64)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Count the pixels of a batch.

        Raises:
            UserError: ground truth cannot be read, is of another size than the prediction, or
                holds an unknown class.
        """
        for given, output in zip(inputs, outputs, strict=True):
            found = output["sem_seg"].argmax(dim=0).cpu().numpy()
            truth = self._truth(given["file_name"], found.shape)
            known = truth != self._metadata.ignore_label
            pairs = len(self._classes) * truth[known] + found[known]
            counts = np.bincount(pairs, minlength=self._confusion.size)
            self._confusion += counts.reshape(self._confusion.shape)

    def evaluate(self) -> OrderedDict | None:
        """Score the images of all processes.

        Returns:
            {"sem_seg": {"mIoU", "fwIoU", "mACC", "pACC", "IoU-<class>", ..., "ACC-<class>", ...}}
            in percent, nan for what does not occur, on the main process, None on others.
        """
        comm.synchronize()
        gathered = comm.gather(self._confusion)
        if not comm.is_main_process():
            return None
        confusion = sum(gathered)
        if self._output_dir is not None:
            os.makedirs(self._output_dir, exist_ok=True)
            path = os.path.join(self._output_dir, "semantic_confusion.json")
            with open(path, "w", encoding="utf-8") as file:
                json.dump({"classes": self._classes, "pixels": confusion.tolist()}, file)
        return OrderedDict(sem_seg=class_scores(confusion, self._classes))

    def _truth(self, file_name: str, size: tuple[int, int]) -> np.ndarray:
        """Class of each pixel, int64 (H, W)."""
        record = self._records[file_name]
        if "sem_seg_file_name" in record:
            path = record["sem_seg_file_name"]
            classes = read_label_image(path).astype(np.int64)
        else:
            path = record["pan_seg_file_name"]
            classes = self._from_segments(path, record["segments_info"])
        if classes.shape != size:
            raise UserError(
                f"{path} is {classes.shape[1]} x {classes.shape[0]} pixels, but the prediction of "
                f"{file_name} is {size[1]} x {size[0]}; they must be of one size."
            )
        wrong = (classes != self._metadata.ignore_label) & (classes >= len(self._classes))
        if wrong.any():
            raise UserError(
                f"{path} holds class {classes[wrong].max()}, but the dataset has "
                f"{len(self._classes)}; correct the label image."
            )
        return classes

    def _from_segments(self, path: str, segments: list[dict]) -> np.ndarray:
        ids = rgb2id(read_picture(path, "RGB"))
        listed = np.array([0, *(segment["id"] for segment in segments)])
        classes = [segment["category_id"] for segment in segments]
        classes = np.array([self._metadata.ignore_label, *classes], dtype=np.int64)
        order = listed.argsort()
        place = np.searchsorted(listed[order], ids).clip(max=len(listed) - 1)
        known = listed[order][place] == ids
        return np.where(known, classes[order][place], self._metadata.ignore_label)


def class_scores(confusion: np.ndarray, names: list[str]) -> dict[str, float]:
    """IoU and accuracy in percent, of each class and on average over those that occur.

    Args:
        confusion: (K, K), pixels by class in the ground truth and predicted class.
        names: of the K classes.
    """
    right, present = confusion.diagonal(), confusion.sum(axis=1)
    occurs = present > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = 100 * right / np.where(occurs, present + confusion.sum(axis=0) - right, 0)
        accuracy = 100 * right / present
        share = present / present.sum()
        scores = {
            "mIoU": iou[occurs].sum() / occurs.sum(),
            "fwIoU": (iou[occurs] * share[occurs]).sum() if occurs.any() else np.nan,
            "mACC": accuracy[occurs].sum() / occurs.sum(),
            "pACC": 100 * right.sum() / present.sum(),
        }
    scores |= {f"IoU-{name}": value for name, value in zip(names, iou, strict=True)}
    scores |= {f"ACC-{name}": value for name, value in zip(names, accuracy, strict=True)}
    return {name: float(value) for name, value in scores.items()}
