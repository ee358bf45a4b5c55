"""Cityscapes' evaluation with progress and tables in the log instead of on stdout."""

import contextlib
import fcntl
import glob
import io
import logging
import os
import re
import shutil
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling as scripts
import cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling as pixel_scripts
import numpy as np
from detectron2.evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from detectron2.evaluation.cityscapes_evaluation import CityscapesEvaluator
from detectron2.utils import comm

from aff_seg.errors import UserError
from aff_seg.evaluation.progress import Progress

logger = logging.getLogger(__name__)

DONE = re.compile(r"\rImages Processed: (\d+)")
TOTAL = re.compile(r"(\d+) (?:pairs of )?images\.\.\.")
# Folders of predictions, and the file in each that its evaluation holds.
PREDICTIONS, LOCK = "predictions_", "lock"
COLOUR = re.compile(r"\x1b\[[\d;]*m")


class ScriptOutput(io.StringIO):
    """Takes what Cityscapes' scripts print: logs their progress, collects the rest."""

    def __init__(self) -> None:
        super().__init__()
        self._progress = Progress(logger, 0)

    def write(self, text: str) -> int:
        if done := DONE.match(text):
            self._progress.update(int(done[1]))
        elif total := TOTAL.search(text):
            self._progress = Progress(logger, int(total[1]))
        else:
            super().write(text)
        return len(text)

    def tables(self) -> str:
        """The tables printed, without the confusion matrix, whose lines have backspaces."""
        lines = COLOUR.sub("", self.getvalue()).splitlines()
        kept = [line.rstrip() for line in lines if "\b" not in line and line.strip()]
        return "\n".join(kept)


class ScriptNumpy:
    """numpy as the scripts need it."""

    # numpy 2.4 took it away.
    in1d = staticmethod(np.isin)

    @staticmethod
    def cumsum(values: np.ndarray) -> np.ndarray:
        """Running sums, at least one.

        The scripts ask for the last one also where every prediction of a class is ignored, for
        what it covers does not count; with 0 they find an AP of 0.
        """
        return np.cumsum(values) if len(values) else np.zeros(1)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


scripts.np = pixel_scripts.np = ScriptNumpy()


@contextlib.contextmanager
def _output_to_log(title: str) -> Iterator[None]:
    """Log what the scripts print; they end the program on errors, which become UserErrors.

    Where no class occurs their mean is nan, without a warning.
    """
    output = ScriptOutput()
    try:
        with contextlib.redirect_stdout(output), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
            yield
    except SystemExit as error:
        raise UserError(f"{title}: {output.tables()}") from error
    if output.tables():
        logger.info("%s\n%s", title, output.tables())


def _remove_abandoned(folder: str) -> None:
    """Remove predictions of evaluations that were killed."""
    for abandoned in Path(folder).glob(f"{PREDICTIONS}*"):
        try:
            with open(abandoned / LOCK, "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(abandoned, ignore_errors=True)
        except OSError:
            # Somebody is at work there.
            continue


class _SharedFolder(CityscapesEvaluator):
    """Predictions lie as files where every process sees them, for the first one to score.

    Args:
        dataset_name: registered name.
        output_dir: folder in which they lie for a while; of several machines, on a disk that they
            share.
    """

    def __init__(self, dataset_name: str, output_dir: str):
        super().__init__(dataset_name)
        self._output_dir = output_dir

    def reset(self) -> None:
        """Forget all images."""
        name = None
        if comm.is_main_process():
            os.makedirs(self._output_dir, exist_ok=True)
            _remove_abandoned(self._output_dir)
            self._working_dir = TemporaryDirectory(prefix=PREDICTIONS, dir=self._output_dir)
            name = self._working_dir.name
            self._lock = os.open(os.path.join(name, LOCK), os.O_RDWR | os.O_CREAT)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._temp_dir = comm.all_gather(name)[0]

    def clean_up(self) -> None:
        """Remove the predictions, in the first process."""
        self._working_dir.cleanup()
        os.close(self._lock)


class InstanceEvaluator(_SharedFolder, CityscapesInstanceEvaluator):
    """AP and AP50 of the eight thing classes."""

    def evaluate(self) -> OrderedDict | None:
        """Score the predictions of all processes.

        The steps are those of the scripts' ``evaluateImgLists``, which would also leave a large
        file in the working directory.

        Returns:
            {"segm": {"AP", "AP50"}} in percent on the main process, None on others.

        Raises:
            UserError: the scripts report an error.
        """
        comm.synchronize()
        if not comm.is_main_process():
            return None
        with _output_to_log("Cityscapes instances"):
            averages = self._averages()
        self.clean_up()
        scores = {"AP": 100 * averages["allAp"], "AP50": 100 * averages["allAp50%"]}
        return OrderedDict(segm=scores)

    def _averages(self) -> dict:
        args = scripts.args
        args.predictionPath = os.path.abspath(self._temp_dir)
        args.predictionWalk = None
        args.colorized = False
        args.gtInstancesFile = os.path.join(self._temp_dir, "gtInstances.json")
        pattern = os.path.join(self._metadata.gt_dir, "*", "*_gtFine_instanceIds.png")
        truth = sorted(glob.glob(pattern))
        predictions = [scripts.getPrediction(image, args) for image in truth]
        scripts.setInstanceLabels(args)
        instances = scripts.getGtInstances(truth, args)
        matches = scripts.matchGtWithPreds(predictions, truth, instances, args)
        averages = scripts.computeAverages(scripts.evaluateMatches(matches, args), args)
        scripts.printResults(averages, args)
        return averages


class SemanticEvaluator(_SharedFolder, CityscapesSemSegEvaluator):
    """IoU of the 19 classes and of their categories, by pixel and weighted by instance."""

    def evaluate(self) -> OrderedDict | None:
        """Score the predictions of all processes.

        Returns:
            {"sem_seg": {"IoU", "iIoU", "IoU_sup", "iIoU_sup"}} in percent on the main process,
            None on others.

        Raises:
            UserError: the scripts report an error.
        """
        comm.synchronize()
        if not comm.is_main_process():
            return None
        with _output_to_log("Cityscapes classes"):
            results = self._results()
        self.clean_up()
        scores = {
            "IoU": 100 * results["averageScoreClasses"],
            "iIoU": 100 * results["averageScoreInstClasses"],
            "IoU_sup": 100 * results["averageScoreCategories"],
            "iIoU_sup": 100 * results["averageScoreInstCategories"],
        }
        return OrderedDict(sem_seg=scores)

    def _results(self) -> dict:
        args = pixel_scripts.args
        args.predictionPath = os.path.abspath(self._temp_dir)
        args.predictionWalk = None
        args.JSONOutput = False
        args.colorized = False
        pattern = os.path.join(self._metadata.gt_dir, "*", "*_gtFine_labelIds.png")
        truth = sorted(glob.glob(pattern))
        predictions = [pixel_scripts.getPrediction(args, image) for image in truth]
        return pixel_scripts.evaluateImgLists(predictions, truth, args)
