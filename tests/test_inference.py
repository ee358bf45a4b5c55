"""Results from the queries' logits."""

import pytest
import torch
import torch.nn.functional as F

from aff_seg.inference import (
    instance_inference,
    panoptic_inference,
    semantic_inference,
    strips,
)

THINGS = (0, 1)
PANOPTIC = {"thing_classes": THINGS, "object_threshold": 0.8, "overlap_threshold": 0.8}


def _logits(*queries, size=(8, 10), classes=4):
    """Queries as (class or None, box or None, confidence)."""
    logits = torch.zeros(len(queries), classes + 1)
    masks = torch.full((len(queries), *size), -8.0)
    for i, (label, box, confidence) in enumerate(queries):
        logits[i, classes if label is None else label] = confidence
        if box is not None:
            x0, y0, x1, y1 = box
            masks[i, y0:y1, x0:x1] = 8.0
    return logits, masks


def test_panoptic_keeps_things_apart_and_merges_stuff():
    logits, masks = _logits(
        (3, (0, 0, 5, 4), 9.0),
        (0, (5, 0, 10, 4), 9.0),
        (3, (0, 4, 5, 8), 9.0),
        (0, (5, 4, 10, 8), 9.0),
        (None, (0, 0, 10, 8), 9.0),
        (1, (0, 0, 10, 8), 0.5),
    )
    segment_map, segments = panoptic_inference(logits, masks, **PANOPTIC)
    assert segments == [
        {"id": 1, "isthing": False, "category_id": 3},
        {"id": 2, "isthing": True, "category_id": 0},
        {"id": 3, "isthing": True, "category_id": 0},
    ]
    want = torch.ones(8, 10, dtype=torch.int32)
    want[:4, 5:], want[4:, 5:] = 2, 3
    assert torch.equal(segment_map, want)


def test_panoptic_drops_what_others_cover():
    logits, masks = _logits((0, (0, 0, 10, 8), 12.0), (1, (0, 0, 5, 8), 6.0))
    _, segments = panoptic_inference(logits, masks, **PANOPTIC)
    assert [s["category_id"] for s in segments] == [0]


def test_panoptic_of_nothing():
    for queries in ([(None, (0, 0, 4, 4), 9.0)], [(0, None, 9.0)]):
        segment_map, segments = panoptic_inference(*_logits(*queries), **PANOPTIC)
        assert segments == [] and not segment_map.any()
        assert segment_map.dtype == torch.int32 and segment_map.shape == (8, 10)


def test_semantic_sums_over_queries():
    logits, masks = torch.randn(5, 4), torch.randn(5, 6, 7)
    got = semantic_inference(logits, masks)
    want = torch.zeros(3, 6, 7)
    for q in range(5):
        for k in range(3):
            want[k] += logits[q].softmax(0)[k] * masks[q].sigmoid()
    torch.testing.assert_close(got, want)


def test_instances_have_boxes_and_scores():
    logits, masks = _logits((1, (2, 3, 7, 5), 9.0), (3, (0, 0, 10, 8), 5.0), (0, None, 4.0))
    result = instance_inference(logits, masks, max_detections=3, thing_classes=THINGS)
    assert result.pred_classes.tolist() == [1, 0]
    assert result.pred_boxes.tensor.tolist() == [[2, 3, 7, 5], [0, 0, 0, 0]]
    probability = logits.softmax(-1)
    torch.testing.assert_close(
        result.scores,
        torch.stack((probability[0, 1] * torch.tensor(8.0).sigmoid(), torch.tensor(0.0))),
    )
    assert result.pred_masks.dtype == torch.bool


def test_fewer_pairs_than_detections():
    logits, masks = torch.randn(20, 2), torch.randn(20, 5, 6)
    assert len(instance_inference(logits, masks, max_detections=100)) == 20


def test_instances_of_nothing():
    result = instance_inference(
        torch.zeros(0, 4), torch.zeros(0, 5, 6), max_detections=9, thing_classes=THINGS
    )
    assert len(result) == 0 and result.pred_boxes.tensor.shape == (0, 4)


def test_boxes_are_tight():
    masks = torch.full((4, 6, 9), -1.0)
    masks[0, 2, 3] = 1
    masks[1] = 1
    masks[2, 0, 8] = masks[2, 5, 1] = 1
    result = instance_inference(torch.zeros(4, 2), masks, max_detections=4)
    want = [[3, 2, 4, 3], [0, 0, 9, 6], [1, 0, 9, 6], [0, 0, 0, 0]]
    assert result.pred_boxes.tensor.tolist() == want


@pytest.mark.parametrize(
    "canvas, padded, crop, size",
    [
        ((16, 24), (64, 96), (60, 90), (60, 90)),
        ((16, 24), (64, 96), (64, 96), (120, 51)),
        ((16, 24), (64, 96), (33, 70), (15, 140)),
        ((7, 5), (7, 5), (7, 5), (7, 5)),
        ((1, 1), (4, 4), (1, 3), (9, 2)),
    ],
)
def test_strips_make_up_the_resized_masks(monkeypatch, canvas, padded, crop, size):
    logits = torch.randn(3, *canvas)
    want = F.interpolate(logits[None], size=padded, mode="bilinear", align_corners=False)
    want = want[..., : crop[0], : crop[1]]
    want = F.interpolate(want, size=size, mode="bilinear", align_corners=False)[0]
    for budget in (1, 1000, 1 << 21):
        monkeypatch.setattr(strips, "_CPU_STRIP", budget)
        got, row = [], 0
        for strip in strips.MaskStrips(logits, padded, crop, size):
            assert strip.rows.start == row and strip.logits.shape[1] == strip.rows.stop - row
            torch.testing.assert_close(strip.probability, strip.logits.sigmoid())
            got.append(strip.logits)
            row = strip.rows.stop
        assert row == size[0]
        torch.testing.assert_close(torch.cat(got, 1), want, rtol=1e-5, atol=1e-5)


def test_results_do_not_depend_on_the_strips(monkeypatch):
    logits, masks = 3 * torch.randn(20, 5), 3 * torch.randn(20, 30, 40)
    options = {"thing_classes": THINGS, "object_threshold": 0.5, "overlap_threshold": 0.3}

    def results():
        segment_map, segments = panoptic_inference(logits, masks, **options)
        instances = instance_inference(logits, masks, max_detections=15)
        return segments, (
            semantic_inference(logits, masks),
            segment_map,
            *(instances.pred_masks, instances.pred_boxes.tensor, instances.scores),
        )

    whole = results()
    assert len(whole[0]) > 2
    monkeypatch.setattr(strips, "_CPU_STRIP", 3000)
    parts = results()
    assert whole[0] == parts[0]
    for a, b in zip(whole[1], parts[1], strict=True):
        torch.testing.assert_close(a, b)
