"""Segments as JSON: complete, in the image's pixels, readable by pycocotools."""

import json

import numpy as np
import pycocotools.mask
import pytest
import torch
from detectron2.data import Metadata
from detectron2.structures import Boxes, Instances

from aff_seg.prediction.segmentation import resize_nearest, segmentation_of
from aff_seg.prediction.segments import segments_to_json

NAMES = Metadata(thing_classes=["road", "car", "bus"], stuff_classes=["road", "car", "bus"])


@pytest.fixture
def panoptic():
    ids = torch.zeros(6, 9, dtype=torch.int32)
    ids[3:] = 1
    ids[1:5, 2:4] = 2
    infos = [
        {"id": 1, "isthing": False, "category_id": 0},
        {"id": 2, "isthing": True, "category_id": 2},
    ]
    return ids, infos


def instances_of(masks, scores, classes):
    masks = torch.as_tensor(np.array(masks))
    return Instances(
        tuple(masks.shape[1:]),
        pred_masks=masks,
        pred_boxes=Boxes(torch.zeros(len(masks), 4)),
        scores=torch.tensor(scores),
        pred_classes=torch.tensor(classes),
    )


def through_json(result, size):
    return json.loads(json.dumps(segments_to_json(segmentation_of(result, size), NAMES)))


def check_against_mask(segment, mask):
    """All numbers of a segment say the same as its mask."""
    decoded = pycocotools.mask.decode(segment["segmentation"])
    np.testing.assert_array_equal(decoded, mask)
    assert segment["area"] == mask.sum()
    y, x = mask.nonzero()
    box = [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
    assert segment["bbox"] == box


def test_panoptic_segments_round_trip(panoptic):
    found = through_json({"panoptic_seg": panoptic, "sem_seg": torch.zeros(3, 6, 9)}, (6, 9))
    assert found.keys() == {"height", "width", "panoptic"}
    assert (found["height"], found["width"]) == (6, 9)
    road, bus = found["panoptic"]
    ids = panoptic[0].numpy()
    check_against_mask(road, ids == 1)
    check_against_mask(bus, ids == 2)
    assert (road["id"], road["category"], road["category_id"], road["isthing"]) == (
        *(1, "road", 0),
        False,
    )
    assert (bus["id"], bus["category"], bus["category_id"], bus["isthing"]) == (2, "bus", 2, True)


def test_a_smaller_result_is_scaled_to_the_image(panoptic):
    found = through_json({"panoptic_seg": panoptic}, (12, 27))
    check_against_mask(found["panoptic"][1], (panoptic[0].numpy() == 2).repeat(2, 0).repeat(3, 1))
    assert found["panoptic"][1]["segmentation"]["size"] == [12, 27]


def test_nothing_found_is_an_empty_list():
    empty = (torch.zeros(4, 4, dtype=torch.int32), [])
    none = instances_of(np.zeros((0, 4, 4), dtype=bool), [], [])
    found = through_json({"panoptic_seg": empty, "instances": none}, (4, 4))
    assert found["panoptic"] == [] and found["instances"] == []


def test_instances_come_best_first_and_empty_ones_are_left_out():
    masks = np.zeros((3, 5, 7), dtype=bool)
    masks[0, 1:3, 2:6] = masks[2, :, 0] = True
    found = through_json({"instances": instances_of(masks, [0.25, 0.9, 0.75], [1, 1, 2])}, (5, 7))
    first, second = found["instances"]
    assert (first["score"], first["category"]) == (0.75, "bus")
    assert (second["score"], second["category"]) == (0.25, "car")
    check_against_mask(first, masks[2])
    check_against_mask(second, masks[0])


def test_semantic_classes_are_told_where_there_is_nothing_else():
    scores = torch.zeros(3, 4, 6)
    scores[1, :, :2], scores[2, :, 2:] = 1, 2
    found = through_json({"sem_seg": scores}, (4, 6))
    car, bus = found["semantic"]
    assert (car["category"], bus["category"]) == ("car", "bus")
    check_against_mask(car, scores.argmax(0).numpy() == 1)
    assert car["area"] + bus["area"] == 4 * 6


def test_a_class_without_name_has_its_number():
    result = {"sem_seg": torch.ones(1, 2, 2)}
    (segment,) = segments_to_json(segmentation_of(result, (2, 2)), Metadata())["semantic"]
    assert segment["category"] == "class 0"


def test_nearest_neighbour_takes_pixel_centres():
    values = np.arange(3)[None]
    np.testing.assert_array_equal(resize_nearest(values, (1, 6))[0], [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(resize_nearest(values, (1, 1))[0], [1])
    np.testing.assert_array_equal(resize_nearest(values, (1, 4))[0], [0, 1, 1, 2])
