"""Panoptic quality, also where no thing or no stuff class occurs."""

import contextlib
import io
import itertools
import json
import logging
import math
import os
import tempfile
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.utils import comm
from panopticapi.evaluation import PQStat, pq_compute_single_core
from panopticapi.utils import rgb2id

from aff_seg.data.labels import read_picture
from aff_seg.evaluation.progress import Progress

logger = logging.getLogger(__name__)

# Suffix of a metric, and whether its classes are things.
GROUPS = {"": None, "_th": True, "_st": False}


class PanopticEvaluator(COCOPanopticEvaluator):
    """Detectron2's evaluator, where a group without any class scores nan instead of failing.

    panopticapi averages over all classes, things and stuff in turn, and divides by the number
    of classes that occur in ground truth or predictions; that may be none.
    """

    def evaluate(self) -> OrderedDict | None:
        """Score the gathered predictions.

        Returns:
            {"panoptic_seg": {"PQ", "SQ", "RQ", "PQ_th", ..., "RQ_st"}} in percent on the main
            process, None on others.
        """
        comm.synchronize()
        predictions = list(itertools.chain(*comm.gather(self._predictions)))
        if not comm.is_main_process():
            return None
        logger.info("Computing the panoptic quality of %d images ...", len(predictions))
        with open(self._metadata.panoptic_json, encoding="utf-8") as file:
            truth = json.load(file)
        with tempfile.TemporaryDirectory(prefix="panoptic_eval_") as folder:
            for number, prediction in enumerate(predictions):
                # Pictures of different folders may have one name.
                prediction["file_name"] = f"{number}.png"
                with open(os.path.join(folder, prediction["file_name"]), "wb") as file:
                    file.write(prediction.pop("png_string"))
            if self._output_dir is not None:
                path = os.path.join(self._output_dir, "predictions.json")
                with open(path, "w", encoding="utf-8") as file:
                    json.dump({**truth, "annotations": predictions}, file)
            quality = self._compare(truth, predictions, folder)
        return OrderedDict(panoptic_seg=_averages(quality, _categories(truth)))

    def _compare(self, truth: dict, predictions: list[dict], folder: str) -> PQStat:
        """Match predictions and ground truth, in threads.

        panopticapi's own pool of processes would import the whole program once per process
        where this one was spawned itself.
        """
        score = partial(
            pq_compute_single_core,
            gt_folder=self._metadata.panoptic_root,
            pred_folder=folder,
            categories=_categories(truth),
        )
        found = {prediction["image_id"]: prediction for prediction in predictions}
        for image in truth["annotations"]:
            _complete(image, self._metadata.panoptic_root)
        pairs = [[(image, found[image["image_id"]])] for image in truth["annotations"]]
        progress = Progress(logger, len(pairs))
        total = PQStat()
        with contextlib.redirect_stdout(io.StringIO()), ThreadPoolExecutor(os.cpu_count()) as pool:
            for done, quality in enumerate(pool.map(score, range(len(pairs)), pairs), start=1):
                total += quality
                progress.update(done)
        return total


def _complete(image: dict, folder: str) -> None:
    """Add what panopticapi needs of each segment and some files leave out."""
    segments = image["segments_info"]
    for segment in segments:
        segment.setdefault("iscrowd", 0)
    if any("area" not in segment for segment in segments):
        ids = rgb2id(read_picture(os.path.join(folder, image["file_name"]), "RGB"))
        areas = dict(zip(*np.unique(ids, return_counts=True), strict=True))
        for segment in segments:
            segment["area"] = int(areas.get(segment["id"], 0))


def _categories(truth: dict) -> dict[int, dict]:
    return {category["id"]: category for category in truth["categories"]}


def _averages(quality: PQStat, categories: dict[int, dict]) -> dict[str, float]:
    """Panoptic, segmentation and recognition quality in percent: of all, things, stuff."""
    result = {}
    for suffix, isthing in GROUPS.items():
        counts = [
            quality[id].tp + quality[id].fp + quality[id].fn
            for id, category in categories.items()
            if isthing is None or isthing == bool(category["isthing"])
        ]
        average = quality.pq_average(categories, isthing)[0] if any(counts) else {}
        for key in ("pq", "sq", "rq"):
            result[f"{key.upper()}{suffix}"] = 100 * average.get(key, math.nan)
    return result
