"""Semantic scores: equal to Detectron2's, and where it fails."""

import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from panopticapi.utils import id2rgb
from PIL import Image

from aff_seg.errors import UserError
from aff_seg.evaluation.semantic import SemanticEvaluator, class_scores

CLASSES = ["sky", "road", "car", "moon", "sea"]
SIZE = (30, 40)


@pytest.fixture
def dataset(tmp_path):
    """Registers a dataset from label arrays; moon never occurs, some pixels are ignored."""
    names = []

    def register(labels, record=None):
        name = f"semantic_{tmp_path.name}_{len(names)}"
        records = []
        for number, array in enumerate(labels):
            path = tmp_path / f"{name}_{number}.png"
            Image.fromarray(array).save(path)
            records.append({"file_name": f"{number}.jpg", "sem_seg_file_name": str(path)})
        DatasetCatalog.register(name, lambda: records if record is None else [record])
        MetadataCatalog.get(name).set(stuff_classes=CLASSES, ignore_label=255)
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def random_labels(seed):
    rng = np.random.default_rng(seed)
    return rng.choice([0, 1, 2, 4, 255], SIZE, p=[0.4, 0.3, 0.1, 0.1, 0.1]).astype(np.uint8)


def one_hot(labels):
    return torch.stack([torch.from_numpy(labels == k) for k in range(len(CLASSES))]).float()


def score(evaluator, predictions):
    evaluator.reset()
    for number, labels in enumerate(predictions):
        evaluator.process([{"file_name": f"{number}.jpg"}], [{"sem_seg": one_hot(labels)}])
    return evaluator.evaluate()["sem_seg"]


def test_scores_equal_those_of_detectron2(dataset, tmp_path):
    truth = [random_labels(seed) for seed in range(3)]
    found = [
        np.where(random_labels(seed + 9) < 2, 3 * (t == 2), t % 5) for seed, t in enumerate(truth)
    ]
    name = dataset(truth)
    # Its own way to read does not work with numpy 2.
    reader = {"sem_seg_loading_fn": lambda path, dtype: np.asarray(Image.open(path), dtype)}
    theirs = score(SemSegEvaluator(name, **reader), found)
    ours = score(SemanticEvaluator(name, str(tmp_path / "out")), found)
    assert 0 < ours["mIoU"] < 100
    shared = theirs.keys() & ours.keys()
    assert shared == ours.keys()
    for key in shared - {"IoU-moon"}:
        assert ours[key] == pytest.approx(theirs[key], nan_ok=True), key
    assert math.isnan(ours["ACC-moon"])
    assert (tmp_path / "out" / "semantic_confusion.json").is_file()


def test_classes_that_do_not_occur_do_not_count():
    scores = class_scores(np.array([[6, 2], [0, 0]]), ["a", "b"])
    assert scores["mIoU"] == scores["IoU-a"] == pytest.approx(75)
    assert math.isnan(scores["IoU-b"])
    nothing = class_scores(np.zeros((2, 2), dtype=np.int64), ["a", "b"])
    assert all(math.isnan(value) for value in nothing.values())


def test_ground_truth_that_is_all_ignored_scores_nan(dataset):
    name = dataset([np.full(SIZE, 255, dtype=np.uint8)])
    assert math.isnan(score(SemanticEvaluator(name), [random_labels(0)])["mIoU"])


def test_panoptic_images_serve_without_label_images(dataset, tmp_path):
    labels = random_labels(0)
    ids = np.choose(np.minimum(labels, 5), [70000, 12, 900, 0, 3, 77]).astype(np.uint32)
    Image.fromarray(id2rgb(ids)).save(tmp_path / "panoptic.png")
    # 77 is not listed, so nobody knows its class.
    infos = [{"id": i, "category_id": c} for i, c in ((70000, 0), (12, 1), (900, 2), (3, 4))]
    record = {
        "file_name": "0.jpg",
        "pan_seg_file_name": str(tmp_path / "panoptic.png"),
        "segments_info": infos,
    }
    found = random_labels(1)
    expected = score(SemanticEvaluator(dataset([labels])), [found])
    measured = score(SemanticEvaluator(dataset([], record)), [found])
    assert measured == pytest.approx(expected, nan_ok=True)
    record["segments_info"] = []
    assert math.isnan(score(SemanticEvaluator(dataset([], record)), [found])["mIoU"])


def test_label_images_that_do_not_fit_are_named(dataset):
    wrong = random_labels(0)
    wrong[0, 0] = 9
    name = dataset([wrong])
    with pytest.raises(UserError, match=r"_0\.png holds class 9, but the dataset has 5"):
        score(SemanticEvaluator(name), [random_labels(1)])
    name = dataset([random_labels(0)])
    with pytest.raises(
        UserError, match=r"_0\.png is 40 x 30 pixels, but the prediction .* 20 x 10"
    ):
        score(SemanticEvaluator(name), [np.zeros((10, 20), dtype=np.uint8)])
