"""Overlays show every segment in its colour, with its name, for pictures of any size."""

import numpy as np
import pytest
import torch
from detectron2.data import Metadata, MetadataCatalog
from detectron2.structures import Boxes, Instances

from aff_seg.prediction.segmentation import segmentation_of
from aff_seg.visualization import overlay as overlays
from aff_seg.visualization.lettering import Label, write_labels
from aff_seg.visualization.overlay import OPACITY, class_colour

COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
METADATA = Metadata(
    thing_classes=["cat", "dog", "cow"],
    stuff_classes=["cat", "dog", "cow"],
    thing_colors=COLOURS,
    stuff_colors=COLOURS,
)


def draw_segments(image, result, metadata):
    return overlays.draw_segments(image, segmentation_of(result, image.shape[:2]), metadata)


def panoptic_of(ids, things=()):
    """A result in which segment i is of class i - 1."""
    ids = torch.as_tensor(ids, dtype=torch.int32)
    infos = [
        {"id": i, "isthing": i in things, "category_id": i - 1}
        for i in ids.unique().tolist()
        if i > 0
    ]
    return {"panoptic_seg": (ids, infos)}


def instances_of(masks, scores):
    return {
        "instances": Instances(
            tuple(masks.shape[1:]),
            pred_masks=torch.as_tensor(masks),
            pred_boxes=Boxes(torch.zeros(len(masks), 4)),
            scores=torch.tensor(scores),
            pred_classes=torch.arange(len(masks)),
        )
    }


def laid_over(colour, grey=100):
    return np.round((1 - OPACITY) * grey + OPACITY * np.array(colour)).astype(np.uint8)


def grey_image(height, width):
    return np.full((height, width, 3), 100, dtype=np.uint8)


def test_panoptic_segments_have_their_colours_and_the_rest_is_left():
    ids = np.zeros((400, 700), dtype=int)
    ids[:200, :300], ids[250:, 350:] = 1, 3
    overlay = draw_segments(grey_image(400, 700), panoptic_of(ids, things=(3,)), METADATA)
    assert overlay.shape == (400, 700, 3) and overlay.dtype == np.uint8
    np.testing.assert_array_equal(overlay[30, 30], laid_over(COLOURS[0]))
    np.testing.assert_array_equal(overlay[380, 380], laid_over(COLOURS[2]))
    np.testing.assert_array_equal(overlay[30, 600], [100, 100, 100])


def test_a_hole_stays_open():
    ids = np.ones((640, 640), dtype=int)
    ids[100:500, 100:500] = 0
    overlay = draw_segments(grey_image(640, 640), panoptic_of(ids, things=(1,)), METADATA)
    assert (overlay[150:450, 150:450] == 100).all()


def test_things_of_one_class_differ_in_colour():
    ids = torch.zeros(640, 640, dtype=torch.int32)
    ids[:300], ids[340:] = 1, 2
    infos = [{"id": i, "isthing": True, "category_id": 1} for i in (1, 2)]
    overlay = draw_segments(grey_image(640, 640), {"panoptic_seg": (ids, infos)}, METADATA)
    assert (overlay[30, 30] != overlay[600, 30]).any()


def test_the_same_result_gives_the_same_picture():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    result = panoptic_of(rng.integers(0, 4, (40, 60)), things=(1, 2))
    before = image.copy()
    first, second = (draw_segments(image, result, METADATA) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(image, before)


def test_unsure_instances_are_not_drawn():
    masks = np.zeros((2, 640, 640), dtype=bool)
    masks[0, :200], masks[1, 400:] = True, True
    overlay = draw_segments(grey_image(640, 640), instances_of(masks, [0.9, 0.4]), METADATA)
    np.testing.assert_array_equal(overlay[30, 30], laid_over(COLOURS[0]))
    assert (overlay[400:] == 100).all()


def test_semantic_result_colours_every_pixel():
    scores = torch.zeros(3, 640, 640)
    scores[0, :, :320], scores[1, :, 320:] = 1, 1
    overlay = draw_segments(grey_image(640, 640), {"sem_seg": scores}, METADATA)
    np.testing.assert_array_equal(overlay[30, 30], laid_over(COLOURS[0]))
    np.testing.assert_array_equal(overlay[30, 600], laid_over(COLOURS[1]))


def test_panoptic_goes_before_instances_before_semantic():
    masks = np.ones((1, 640, 640), dtype=bool)
    scores = torch.zeros(3, 640, 640)
    scores[2] = 1
    everything = {
        **panoptic_of(np.full((640, 640), 2)),
        **instances_of(masks, [0.9]),
        "sem_seg": scores,
    }
    corner = draw_segments(grey_image(640, 640), everything, METADATA)[30, 30]
    np.testing.assert_array_equal(corner, laid_over(COLOURS[1]))
    del everything["panoptic_seg"]
    corner = draw_segments(grey_image(640, 640), everything, METADATA)[30, 30]
    np.testing.assert_array_equal(corner, laid_over(COLOURS[0]))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 1), (640, 640)),
        ((2, 3), (428, 642)),
        ((5, 300), (15, 900)),
        ((300, 5), (900, 15)),
        ((639, 10), (1278, 20)),
        ((600, 800), (600, 800)),
    ],
)
def test_only_small_pictures_are_enlarged(shape, expected):
    result = panoptic_of(np.ones(shape))
    assert draw_segments(grey_image(*shape), result, METADATA).shape[:2] == expected


def test_result_smaller_than_the_image_is_scaled():
    ids = np.zeros((10, 10), dtype=int)
    ids[:, :5] = 1
    overlay = draw_segments(grey_image(700, 700), panoptic_of(ids), METADATA)
    np.testing.assert_array_equal(overlay[690, 300], laid_over(COLOURS[0]))
    np.testing.assert_array_equal(overlay[690, 400], [100, 100, 100])


def test_instances_are_drawn_from_a_score_on():
    masks = np.zeros((2, 640, 640), dtype=bool)
    masks[0, :300], masks[1, 340:] = True, True
    found = segmentation_of(instances_of(masks, [0.9, 0.3]), (640, 640))
    for options, changed in (({}, 1), ({"least": 0.2}, 2), ({"least": 0.95}, 0)):
        drawn = overlays.draw_segments(grey_image(640, 640), found, METADATA, **options)
        assert sum((drawn[y, 30] != 100).any() for y in (30, 600)) == changed


def test_nothing_found_leaves_the_image():
    image = np.random.default_rng(0).integers(0, 256, (640, 700, 3), dtype=np.uint8)
    empty = panoptic_of(np.zeros((640, 700)))
    np.testing.assert_array_equal(draw_segments(image, empty, METADATA), image)


def test_colours_come_from_the_dataset_and_else_differ():
    cityscapes = MetadataCatalog.get("cityscapes_fine_panoptic_val")
    assert class_colour(cityscapes, 0, False) == (128, 64, 128)
    own = [class_colour(Metadata(), i, True) for i in range(150)]
    assert len(set(own)) == 150
    assert all(0 <= channel <= 255 for colour in own for channel in colour)


def mask_with(shape, *parts):
    mask = np.zeros(shape, dtype=np.uint8)
    for part in parts:
        mask[part] = 1
    return mask


def test_label_is_anchored_in_the_widest_part():
    mask = mask_with((100, 200), np.s_[10:15, 10:150], np.s_[40:90, 20:70])
    label = Label.on_mask("x", mask)
    assert label.box == (10, 10, 150, 90)
    assert 60 <= label.centre[1] <= 69 and 40 <= label.centre[0] <= 49
    assert label.depth == pytest.approx(25, abs=2)


def dark(picture):
    return picture.max(-1) < 128


def test_label_lies_on_a_big_segment_and_beside_a_small_one():
    white = np.full((200, 300, 3), 255, dtype=np.uint8)
    big = Label.on_mask("big", mask_with((200, 300), np.s_[50:150, 100:200]))
    y, x = dark(write_labels(white, [big], 14)).nonzero()
    assert 85 < y.min() and y.max() < 115 and 120 < x.min() and x.max() < 180
    small = Label.on_mask("small", mask_with((200, 300), np.s_[100:106, 100:106]))
    written = write_labels(white, [small], 14)
    assert not dark(written)[100:106, 100:106].any()
    assert dark(written).any()


def test_labels_do_not_overlap_where_there_is_room():
    white = np.full((200, 300, 3), 255, dtype=np.uint8)
    labels = [
        Label.on_mask("one", mask_with((200, 300), np.s_[100:104, 100:104])),
        Label.on_mask("two", mask_with((200, 300), np.s_[100:104, 108:112])),
    ]
    together = dark(write_labels(white, labels, 14)).sum()
    apart = sum(dark(write_labels(white, [label], 14)).sum() for label in labels)
    assert together == apart
