"""COCO's average precision for odd ids and sparse files."""

import json
import math

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import BitMasks, Instances

from aff_seg.errors import UserError
from aff_seg.evaluation.instance import InstanceEvaluator

SIZE = (30, 40)
BOX = [[2, 2, 22, 2, 22, 17, 2, 17]]


def annotation(**changes):
    return {"id": 1, "image_id": "a", "category_id": 7, "segmentation": BOX, **changes}


@pytest.fixture
def score(tmp_path):
    """Scores the classes found in the mask of BOX against annotations."""
    name = f"instance_{tmp_path.name}"

    def run(annotations, classes, id_map, **options):
        MetadataCatalog.pop(name, None)
        path = tmp_path / "truth.json"
        image = {"id": "a", "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}
        categories = [{"id": 30, "name": "dog"}, {"id": 7, "name": "cat"}]
        content = {"images": [image], "annotations": annotations, "categories": categories}
        path.write_text(json.dumps(content))
        metadata = MetadataCatalog.get(name).set(json_file=str(path))
        if id_map is not None:
            metadata.thing_dataset_id_to_contiguous_id = id_map
        evaluator = InstanceEvaluator(name, str(tmp_path), **options)
        evaluator.reset()
        mask = np.zeros(SIZE, dtype=bool)
        mask[2:17, 2:22] = True
        masks = torch.from_numpy(mask).expand(len(classes), *SIZE)
        found = Instances(SIZE, pred_masks=masks, scores=torch.ones(len(classes)))
        found.pred_boxes = BitMasks(masks).get_bounding_boxes()
        found.pred_classes = torch.tensor(classes, dtype=torch.int64)
        evaluator.process([{"image_id": "a"}], [{"instances": found}])
        scores = evaluator.evaluate()
        assert list(scores) == sorted(options.get("tasks", ("bbox", "segm")))
        return scores[list(scores)[-1]]

    yield run
    MetadataCatalog.pop(name, None)


def test_things_need_not_be_the_first_classes(score):
    scores = score([annotation()], [5], {7: 5, 30: 2})
    assert scores["AP"] == scores["AP-cat"] == pytest.approx(100)
    assert math.isnan(scores["AP-dog"])
    assert score([annotation()], [2], {7: 5, 30: 2})["AP"] == pytest.approx(0)


def test_classes_without_a_category_are_not_scored(score):
    assert score([annotation()], [5, 0, 1], {7: 5, 30: 2})["AP"] == pytest.approx(100)


def test_without_a_map_the_model_counts_as_the_file(score):
    assert score([annotation()], [7], None)["AP"] == pytest.approx(100)


def test_nothing_found_scores_0_where_there_is_something(score):
    for classes in ([], [0]):
        assert score([annotation()], classes, {7: 5})["AP"] == 0
        assert math.isnan(score([], classes, {7: 5})["AP"])
    assert math.isnan(score([annotation(iscrowd=1)], [], {7: 5})["AP"])


def test_an_annotation_without_a_mask_is_named(score):
    with pytest.raises(UserError, match=r"truth\.json: annotation 1 has no segmentation"):
        score([annotation(segmentation=[])], [5], {7: 5})


def test_polygons_of_two_points_are_left_out_as_in_training(score):
    truth = [
        annotation(segmentation=[[1, 2, 3, 4], *BOX]),
        annotation(id=2, category_id=30, segmentation=[[1, 2, 3, 4]]),
    ]
    for entry in (truth, [annotation(bbox=[], segmentation=[[1, 2, 3, 4], *BOX])]):
        assert score(entry, [0], {7: 0, 30: 1})["AP"] == pytest.approx(100)


def test_annotations_may_count_from_0(score):
    assert score([annotation(id=0)], [0], {7: 0, 30: 1})["AP"] == pytest.approx(100)


def test_boxes_alone_need_no_masks(score):
    boxed = annotation(bbox=[2, 2, 20, 15])
    del boxed["segmentation"]
    scores = score([boxed], [0], {7: 0, 30: 1}, tasks=("bbox",))
    assert scores["AP"] == pytest.approx(100)
    with pytest.raises(UserError, match="annotation 1 has no segmentation"):
        score([boxed], [0], {7: 0, 30: 1})
