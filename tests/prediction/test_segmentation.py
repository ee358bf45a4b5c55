"""What was found, at the size of the image, in little memory."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from aff_seg.prediction.segmentation import (
    PackedMask,
    Segmentation,
    resize_nearest,
    segmentation_of,
)


def random_masks(count, size, seed=0):
    return np.random.default_rng(seed).random((count, *size)) < 0.2


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (64, 3)])
def test_a_packed_mask_is_the_mask(size):
    for mask in (*random_masks(5, size), np.zeros(size, dtype=bool), np.ones(size, dtype=bool)):
        packed = PackedMask.of(mask)
        np.testing.assert_array_equal(packed.unpack(), mask)
        left, top, right, bottom = packed.box
        assert mask[top:bottom, left:right].sum() == mask.sum()
        assert len(packed.bits) == -(-(bottom - top) * (right - left) // 8)


def test_moved_and_united_masks():
    masks = np.zeros((3, 6, 8), dtype=bool)
    masks[0, 1:3, 2:4] = masks[1, 2:5, 3:7] = True
    packed = [PackedMask.of(mask) for mask in masks]
    np.testing.assert_array_equal(PackedMask.union(packed).unpack(), masks.any(0))
    assert PackedMask.union(packed).box == (2, 1, 7, 5)
    for mask, small in zip(masks, packed, strict=True):
        large = np.zeros((20, 30), dtype=bool)
        large[10:16, 20:28] = mask
        np.testing.assert_array_equal(small.moved((10, 20), (20, 30)).unpack(), large)
    empty = packed[2]
    assert PackedMask.union([empty, empty]).box == (0, 0, 0, 0)


def output(size):
    scores = [0.3, 0.9, 0.6]
    masks = random_masks(3, size)
    return {
        "sem_seg": torch.as_tensor(np.random.default_rng(1).random((4, *size))),
        "panoptic_seg": (
            torch.as_tensor(masks[0] + 2 * masks[1] * ~masks[0], dtype=torch.int32),
            [{"id": i, "isthing": i == 1, "category_id": i + 1} for i in (1, 2)],
        ),
        "instances": Instances(
            size,
            pred_masks=torch.as_tensor(masks),
            pred_boxes=Boxes(torch.zeros(3, 4)),
            scores=torch.tensor(scores),
            pred_classes=torch.tensor([3, 1, 2]),
        ),
    }


def test_instances_are_arrays_best_first():
    found = segmentation_of(output((6, 9)), (6, 9))
    np.testing.assert_array_equal(found.masks, random_masks(3, (6, 9))[[1, 2, 0]])
    assert found.masks.dtype == bool
    assert found.classes.tolist() == [1, 2, 3]
    np.testing.assert_allclose(found.scores, [0.9, 0.6, 0.3])
    for box, mask in zip(found.boxes, found.masks, strict=True):
        y, x = mask.nonzero()
        assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_maps_have_the_size_of_the_image():
    given = output((6, 9))
    small, large = (segmentation_of(given, size) for size in ((6, 9), (12, 27)))
    np.testing.assert_array_equal(small.panoptic, given["panoptic_seg"][0])
    np.testing.assert_array_equal(small.semantic, given["sem_seg"].argmax(0))
    for name in ("panoptic", "semantic"):
        np.testing.assert_array_equal(
            getattr(large, name), resize_nearest(getattr(small, name), (12, 27))
        )
    assert large.masks.shape == (3, 12, 27)
    np.testing.assert_allclose(large.boxes, small.boxes * [3, 2, 3, 2])
    uneven = segmentation_of(given, (17, 20))
    for box, mask in zip(uneven.boxes, uneven.masks, strict=True):
        assert box.tolist() == list(PackedMask.of(mask).box)
    for segmentation in (small, large):
        for segment in segmentation.panoptic_segments():
            np.testing.assert_array_equal(segment.mask, segmentation.panoptic == segment.id)


def test_unsure_instances_can_be_left_out():
    found = segmentation_of(output((6, 9)), (6, 9))
    assert found.at_least(0.5).classes.tolist() == [1, 2]
    assert [segment.category_id for segment in found.instance_segments(0.7)] == [1]


def test_unsure_pixels_and_instances_can_be_left_out_at_once():
    given = {**output((6, 9)), "sem_seg": torch.zeros(2, 6, 9)}
    given["sem_seg"][1, :, :4], given["sem_seg"][0, :2, 4:] = 0.7, 0.4
    found = segmentation_of(given, (6, 9), least=0.5)
    assert found.classes.tolist() == [1, 2]
    expected = np.full((6, 9), -1)
    expected[:, :4] = 1
    np.testing.assert_array_equal(found.semantic, expected)
    (segment,) = found.semantic_segments()
    assert segment.category_id == 1 and segment.mask.sum() == 24


def test_what_is_not_inferred_is_none():
    nothing = Segmentation((4, 4))
    for name in ("panoptic", "semantic", "masks", "boxes", "classes", "scores"):
        assert getattr(nothing, name) is None
    none = segmentation_of({"instances": output((6, 9))["instances"][:0]}, (6, 9))
    assert nothing.at_least(0.5) is nothing
    assert none.masks.shape == (0, 6, 9) and none.boxes.shape == (0, 4)
