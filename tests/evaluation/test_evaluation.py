"""Evaluators on a drawn Cityscapes: perfect, empty and partly absent predictions."""

import json
import logging
import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from panopticapi.utils import id2rgb
from PIL import Image

from aff_seg import add_aff_config
from aff_seg.errors import UserError
from aff_seg.evaluation import (
    build,
    build_evaluator,
    check_best_metric,
    check_evaluators,
    cityscapes,
    format_table,
    save_results,
    summarize,
)
from aff_seg.evaluation.instance import InstanceEvaluator
from aff_seg.evaluation.progress import Progress
from aff_seg.evaluation.semantic import SemanticEvaluator

SIZE = (64, 128)
# Cityscapes label id, train id, whether a thing.
ROAD, SKY, CAR, PERSON = (7, 0, False), (23, 10, False), (26, 13, True), (24, 11, True)
SCENES = {
    "with_things": [(SKY, 0, 0, 128, 30), (ROAD, 0, 30, 128, 64), (CAR, 10, 20, 40, 50)]
    + [(CAR, 60, 20, 90, 50), (PERSON, 100, 20, 115, 50)],
    "only_stuff": [(SKY, 0, 0, 128, 30), (ROAD, 0, 30, 128, 64)],
    "nothing": [],
}


def paint(scene):
    """(h, w) map of panoptic ids, and the segments: id, label."""
    ids, segments = np.zeros(SIZE, int), {}
    for (label, train_id, thing), x0, y0, x1, y1 in scene:
        id = label * 1000 + len(segments) if thing else label
        ids[y0:y1, x0:x1] = id
        segments[id] = (label, train_id, thing)
    return ids, segments


@pytest.fixture(params=["with_things", "only_stuff"])
def dataset(request, tmp_path):
    """A registered dataset of one image, with everything that evaluation reads."""
    ids, segments = paint(SCENES[request.param])
    truth, panoptic = tmp_path / "gtFine" / "val", tmp_path / "gtFine" / "cityscapes_panoptic_val"
    stem = "aachen_000000_000019"
    (truth / "aachen").mkdir(parents=True)
    panoptic.mkdir()
    labels = np.where(ids >= 1000, ids // 1000, ids)
    instance_ids = Image.fromarray(ids.astype(np.uint16))
    instance_ids.save(truth / "aachen" / f"{stem}_gtFine_instanceIds.png")
    label_ids = Image.fromarray(labels.astype(np.uint8))
    label_ids.save(truth / "aachen" / f"{stem}_gtFine_labelIds.png")
    Image.fromarray(id2rgb(ids)).save(panoptic / f"{stem}_gtFine_panoptic.png")
    builtin = MetadataCatalog.get("cityscapes_fine_panoptic_val")
    categories = [
        {"id": id, "name": str(id), "isthing": int(id in builtin.thing_dataset_id_to_contiguous_id)}
        for id in (
            *builtin.thing_dataset_id_to_contiguous_id,
            *builtin.stuff_dataset_id_to_contiguous_id,
        )
    ]
    annotation = {
        "image_id": stem,
        "file_name": f"{stem}_gtFine_panoptic.png",
        "segments_info": [
            {"id": id, "category_id": label, "area": int((ids == id).sum()), "iscrowd": 0}
            for id, (label, _, _) in segments.items()
        ],
    }
    with open(tmp_path / "panoptic.json", "w") as file:
        json.dump(
            {"images": [{"id": stem}], "annotations": [annotation], "categories": categories}, file
        )
    name = f"test_{tmp_path.name}"
    MetadataCatalog.get(name).set(
        evaluator_type="cityscapes_panoptic_seg",
        gt_dir=str(truth),
        panoptic_root=str(panoptic),
        panoptic_json=str(tmp_path / "panoptic.json"),
        thing_classes=builtin.thing_classes,
        thing_dataset_id_to_contiguous_id=builtin.thing_dataset_id_to_contiguous_id,
        stuff_dataset_id_to_contiguous_id=builtin.stuff_dataset_id_to_contiguous_id,
    )
    record = {"file_name": f"{stem}_leftImg8bit.png", "image_id": stem}
    yield SimpleNamespace(name=name, record=record, ids=ids, segments=segments, path=truth)
    MetadataCatalog.remove(name)


def config(semantic=True, instance=True, panoptic=True):
    cfg = get_cfg()
    add_aff_config(cfg)
    flags = cfg.MODEL.MASK_FORMER.TEST
    flags.SEMANTIC_ON, flags.INSTANCE_ON, flags.PANOPTIC_ON = semantic, instance, panoptic
    return cfg


def evaluate(dataset, output, folder):
    evaluator = build_evaluator(config(), dataset.name, str(folder))
    evaluator.reset()
    evaluator.process([dataset.record], [output])
    return evaluator.evaluate()


def prediction(ids, segments):
    """The model's output that says just this."""
    sem_seg = torch.zeros(19, *SIZE)
    infos, things = [], []
    for id, (_, train_id, thing) in segments.items():
        mask = torch.from_numpy(ids == id)
        sem_seg[train_id][mask] = 1.0
        infos.append({"id": id, "isthing": thing, "category_id": train_id})
        if thing:
            things.append((train_id, mask))
    instances = Instances(SIZE)
    instances.pred_classes = torch.tensor([c for c, _ in things], dtype=torch.int64)
    instances.scores = torch.full((len(things),), 0.9)
    instances.pred_masks = torch.stack([m for _, m in things] or [torch.zeros(SIZE)])[: len(things)]
    panoptic = torch.from_numpy(ids).to(torch.int32)
    return {"sem_seg": sem_seg, "panoptic_seg": (panoptic, infos), "instances": instances}


@pytest.mark.filterwarnings("error")
def test_ground_truth_as_prediction_scores_100(dataset, tmp_path):
    results = evaluate(dataset, prediction(dataset.ids, dataset.segments), tmp_path / "out")
    summary = summarize(results)
    for metric in ("PQ", "SQ", "RQ", "PQ_st", "mIoU"):
        assert summary[metric] == pytest.approx(100)
    has_things = any(thing for _, _, thing in dataset.segments.values())
    for metric in ("PQ_th", "AP", "AP50"):
        if has_things:
            assert summary[metric] == pytest.approx(100)
        else:
            assert math.isnan(summary[metric])
    saved = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(saved["annotations"][0]["segments_info"]) == len(dataset.segments)


@pytest.mark.filterwarnings("error")
def test_nothing_found_scores_0_and_does_not_fail(dataset, tmp_path):
    results = evaluate(dataset, prediction(np.zeros(SIZE, int), {}), tmp_path / "out")
    summary = summarize(results)
    assert summary["PQ"] == 0.0
    has_things = any(thing for _, _, thing in dataset.segments.values())
    assert summary["PQ_th"] == 0.0 if has_things else math.isnan(summary["PQ_th"])
    assert summary["AP"] == 0.0 if has_things else math.isnan(summary["AP"])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dataset", list(SCENES), indirect=True)
def test_found_classes_that_do_not_occur(dataset, tmp_path):
    """A bus and terrain: wrong where anything is labelled, and nothing divides by zero."""
    ids = dataset.ids.copy()
    ids[:30, :64], ids[40:, 64:] = 28000, 22
    found = dict(dataset.segments) | {28000: (28, 15, True), 22: (22, 9, False)}
    found = {id: segment for id, segment in found.items() if (ids == id).any()}
    summary = summarize(evaluate(dataset, prediction(ids, found), tmp_path / "out"))
    occur = {label for label, _, _ in dataset.segments.values()}
    if not occur:
        assert all(math.isnan(value) for value in summary.values())
    elif occur == {7, 23}:
        # Half of the sky and 22 of 34 rows' worth of road are found; bus and terrain score 0.
        assert summary["mIoU"] == pytest.approx(100 * (1 / 2 + 22 / 34) / 4)
        assert summary["PQ"] == pytest.approx(100 * (22 / 34) / 4)
        assert summary["PQ_st"] == pytest.approx(100 * (22 / 34) / 3)
        assert summary["PQ_th"] == 0 and math.isnan(summary["AP"])
    else:
        assert all(0 < value <= 100 for value in summary.values())


@pytest.mark.parametrize("dataset", ["with_things"], indirect=True)
def test_one_of_two_cars_missed(dataset, tmp_path):
    ids = np.where(dataset.ids == 26003, 0, dataset.ids)
    found = {id: segment for id, segment in dataset.segments.items() if id != 26003}
    summary = summarize(evaluate(dataset, prediction(ids, found), tmp_path / "out"))
    # Cars: one found of two, RQ = 1 / (1 + 1/2); persons, road and sky: all.
    assert summary["PQ_th"] == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert summary["PQ_st"] == pytest.approx(100)
    assert summary["SQ"] == pytest.approx(100)


@pytest.mark.parametrize("dataset", ["with_things"], indirect=True)
def test_cityscapes_tables_go_to_the_log_and_no_file_is_left(
    dataset, tmp_path, monkeypatch, caplog, capsys
):
    monkeypatch.chdir(tmp_path)
    before = sorted(os.listdir())
    with caplog.at_level(logging.INFO):
        evaluate(dataset, prediction(dataset.ids, dataset.segments), tmp_path)
    assert sorted(os.listdir()) == sorted([*before, "predictions.json"])
    assert capsys.readouterr().out == ""
    (instances,) = [m for m in caplog.messages if m.startswith("Cityscapes instances\n")]
    (classes,) = [m for m in caplog.messages if m.startswith("Cityscapes classes\n")]
    assert "car            :          1.000          1.000" in instances
    assert "road          : 1.000      nan" in classes


@pytest.mark.parametrize("dataset", ["with_things"], indirect=True)
def test_predictions_of_killed_evaluations_are_removed(dataset, tmp_path):
    abandoned = tmp_path / "predictions_killed"
    abandoned.mkdir()
    (abandoned / "lock").touch()
    (abandoned / "a_pred.txt").touch()
    evaluators = [cityscapes.InstanceEvaluator(dataset.name, str(tmp_path)) for _ in range(2)]
    for evaluator in evaluators:
        evaluator.reset()
    assert not abandoned.exists()
    # Those at work are left alone.
    assert len(list(tmp_path.glob("predictions_*"))) == 2
    for evaluator in evaluators:
        evaluator.clean_up()


@pytest.mark.parametrize("dataset", ["with_things"], indirect=True)
@pytest.mark.parametrize("evaluator", [cityscapes.InstanceEvaluator, cityscapes.SemanticEvaluator])
def test_error_of_the_cityscapes_scripts_is_a_user_error(dataset, evaluator, tmp_path):
    evaluator = evaluator(dataset.name, str(tmp_path))
    evaluator.reset()
    with pytest.raises(UserError, match="Found no prediction for ground truth .*aachen_000000"):
        evaluator.evaluate()


@pytest.mark.parametrize("dataset", ["with_things"], indirect=True)
def test_predictions_that_are_all_ignored_score_0(dataset, tmp_path):
    """Cars where nothing is labelled and bicycles where there are none, but no car where one is."""
    ids, bicycle = np.zeros(SIZE, int), (33, 18, True)
    ids[:, 120:], ids[:20, :40] = 26009, 33000
    labelled = dataset.path / "aachen" / "aachen_000000_000019_gtFine_instanceIds.png"
    truth = dataset.ids.copy()
    truth[:, 120:] = 0
    Image.fromarray(truth.astype(np.uint16)).save(labelled)
    found = prediction(ids, {26009: CAR, 33000: bicycle})
    results = evaluate(dataset, found, tmp_path / "out")
    assert results["segm"] == {"AP": 0.0, "AP50": 0.0}


def test_progress_tells_the_time_left(caplog):
    logger = logging.getLogger("test_progress")
    with caplog.at_level(logging.INFO):
        Progress(logger, 4, seconds=60).update(2)
        Progress(logger, 4, seconds=0).update(2)
    assert caplog.messages == ["Scored 2/4 images. ETA=0:00:00"]


KINDS = {
    "cityscapes_instance": (cityscapes.InstanceEvaluator, {"semantic": False, "panoptic": False}),
    "cityscapes_sem_seg": (cityscapes.SemanticEvaluator, {"instance": False, "panoptic": False}),
    "coco": (InstanceEvaluator, {"semantic": False, "panoptic": False}),
    "sem_seg": (SemanticEvaluator, {"instance": False, "panoptic": False}),
}


@pytest.fixture
def toy(tmp_path):
    """A registered dataset without images whose evaluator_type can be set."""
    name = f"toy_{tmp_path.name}"
    DatasetCatalog.register(name, list)
    meta = MetadataCatalog.get(name).set(thing_classes=["a"], stuff_classes=["a"], ignore_label=255)
    coco = tmp_path / "toy.json"
    coco.write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    meta.json_file = str(coco)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluator_follows_the_type_of_the_dataset(toy, tmp_path, kind):
    expected, flags = KINDS[kind]
    MetadataCatalog.get(toy).evaluator_type = kind
    evaluator = build_evaluator(config(**flags), toy, str(tmp_path))
    assert [type(part) for part in evaluator._evaluators] == [expected]


def test_flags_choose_among_the_evaluators_of_a_panoptic_dataset(tmp_path):
    evaluator = build_evaluator(
        config(instance=False), "cityscapes_fine_panoptic_val", str(tmp_path)
    )
    names = [type(part).__name__ for part in evaluator._evaluators]
    assert names == ["PanopticEvaluator", "SemanticEvaluator"]


def test_unknown_type_and_missing_outputs_are_user_errors(toy, tmp_path):
    MetadataCatalog.get(toy).evaluator_type = "video"
    with pytest.raises(UserError, match="evaluator_type 'video'; known are sem_seg, coco, "):
        build_evaluator(config(), toy, str(tmp_path))
    with pytest.raises(UserError, match="needs MODEL.MASK_FORMER.TEST.INSTANCE_ON"):
        build_evaluator(config(instance=False), "coco_2017_val", str(tmp_path))


# Tasks that a panoptic dataset of COCO scores of what an architecture gives.
GIVEN = {
    "GeneralizedRCNN": ["segm"],
    "RetinaNet": ["bbox"],
    "SemanticSegmentor": ["sem_seg"],
    "PanopticFPN": ["panoptic_seg", "segm", "sem_seg"],
}


@pytest.mark.parametrize("architecture", GIVEN)
def test_what_an_architecture_gives_is_scored(architecture, toy):
    MetadataCatalog.get(toy).evaluator_type = "coco_panoptic_seg"
    cfg = config(semantic=False, instance=False, panoptic=False)
    cfg.INPUT.DATASET_MAPPER_NAME = "detectron2"
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.MASK_ON = architecture, True
    assert [entry.tasks[0] for entry in build._entries(cfg, toy)] == GIVEN[architecture]
    cfg.MODEL.MASK_ON = False
    boxes = [task.replace("segm", "bbox") for task in GIVEN[architecture]]
    assert [entry.tasks[0] for entry in build._entries(cfg, toy)] == boxes
    cfg.DATASETS.TEST, cfg.TEST.BEST_METRIC = (toy,), "AP_box"
    if "bbox" in boxes:
        check_best_metric(cfg)
    else:
        with pytest.raises(UserError, match="is scored by mIoU"):
            check_best_metric(cfg)


def test_outputs_that_a_dataset_does_not_score_are_told(toy, tmp_path):
    MetadataCatalog.get(toy).evaluator_type = "coco"
    cfg = config()
    cfg.INPUT.DATASET_MAPPER_NAME = "detectron2"
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    with pytest.raises(UserError) as caught:
        build_evaluator(cfg, toy, str(tmp_path))
    assert str(caught.value) == (
        f"Dataset {toy} is scored by instances or boxes, but MODEL.META_ARCHITECTURE "
        "SemanticSegmentor gives sem_seg; name another in DATASETS.TEST."
    )


def test_an_architecture_that_is_not_scored_is_told(toy):
    MetadataCatalog.get(toy).evaluator_type = "coco"
    cfg = config()
    cfg.INPUT.DATASET_MAPPER_NAME, cfg.DATASETS.TEST = "detectron2", (toy,)
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    with pytest.raises(UserError, match="ProposalNetwork is not scored here, only General"):
        check_evaluators(cfg)
    cfg.DATASETS.TEST = ()
    check_evaluators(cfg)
    # Which mapper it was trained with does not matter.
    cfg.MODEL.META_ARCHITECTURE, cfg.DATASETS.TEST = "MaskFormer", (toy,)
    check_evaluators(cfg)


def test_keypoints_are_said_not_to_be_scored(toy, caplog):
    MetadataCatalog.get(toy).evaluator_type = "coco"
    cfg = config()
    cfg.INPUT.DATASET_MAPPER_NAME, cfg.DATASETS.TEST = "detectron2", (toy,)
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    check_evaluators(cfg)
    assert not caplog.messages
    cfg.MODEL.KEYPOINT_ON = True
    check_evaluators(cfg)
    assert "keypoints are not scored here" in caplog.text


def test_boxes_are_in_the_table_where_there_are_no_masks():
    boxes = {"bbox": {"AP": 20.0, "AP50": 40.0}}
    assert summarize(boxes) == {"AP_box": 20, "AP50_box": 40}
    assert summarize({**boxes, "segm": {"AP": 30.0}}) == {"AP": 30}


RESULTS = {
    "city": {
        "panoptic_seg": {"PQ": 51.234, "SQ": 80.0, "RQ": 62.0, "PQ_th": math.nan, "PQ_st": 55.0},
        "segm": {"AP": 30.0, "AP50": 50.0},
        "sem_seg": {"IoU": 70.0, "iIoU": 1.0},
    },
    "ade": {"sem_seg": {"mIoU": 44.0, "IoU-wall": 3.0}},
}


def test_table_has_a_line_per_dataset():
    header, _, city, ade = (line.split() for line in format_table(RESULTS).splitlines())
    assert header == ["dataset", "PQ", "SQ", "RQ", "PQ_th", "PQ_st", "AP", "AP50", "mIoU"]
    assert city == ["city", "51.23", "80.00", "62.00", "nan", "55.00", "30.00", "50.00", "70.00"]
    assert ade == ["ade", *"-------", "44.00"]
    assert format_table({"ade": RESULTS["ade"]}).splitlines()[0].split() == ["dataset", "mIoU"]


def test_saved_results_are_strict_json(tmp_path):
    path = save_results(RESULTS, str(tmp_path))
    with open(path) as file:
        saved = json.load(file, parse_constant=pytest.fail)
    assert saved["city"]["panoptic_seg"]["PQ_th"] is None
    assert saved["city"]["panoptic_seg"]["PQ"] == 51.234


def test_evaluators_are_checked_before_any_work(load_config):
    cfg = load_config("ade20k/semantic/aff_mini")
    check_evaluators(cfg)
    test = "MODEL.MASK_FORMER.TEST"
    cfg = load_config("ade20k/semantic/aff_mini", f"{test}.SEMANTIC_ON", False)
    with pytest.raises(UserError, match="needs MODEL.MASK_FORMER.TEST.SEMANTIC_ON"):
        check_evaluators(cfg)


def test_the_best_metric_is_checked_before_training(load_config):
    cfg = load_config("ade20k/semantic/aff_mini")
    for known in ("mIoU", "sem_seg/fwIoU", "sem_seg/IoU-wall", ""):
        cfg.TEST.BEST_METRIC = known
        check_best_metric(cfg)
    for unknown in ("PQ", "segm/AP", "miou", "sem_seg/PQ", "sem_seg/", "sem_seg/IoU"):
        cfg.TEST.BEST_METRIC = unknown
        with pytest.raises(UserError, match=f"BEST_METRIC is '{unknown}', but ade20k.* by mIoU; "):
            check_best_metric(cfg)
    cfg = load_config("coco/panoptic/aff_mini")
    for known in ("PQ", "AP", "segm/APs", "bbox/AP", "panoptic_seg/RQ_st"):
        cfg.TEST.BEST_METRIC = known
        check_best_metric(cfg)
