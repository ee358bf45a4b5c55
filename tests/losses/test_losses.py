"""Matching and losses."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.projects.point_rend.point_features import point_sample

from aff_seg.losses import HungarianMatcher, SetCriterion
from aff_seg.losses.points import dice, pairwise_bce, pairwise_dice, sample_masks


@pytest.fixture
def criterion():
    matcher = HungarianMatcher(cost_class=2, cost_mask=5, cost_dice=5, num_points=512)
    return SetCriterion(
        num_classes=3,
        matcher=matcher,
        no_object_weight=0.1,
        num_points=512,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
    )


def _boxes(*boxes, size=(32, 48)):
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


TARGET = {"labels": torch.tensor([2, 0]), "masks": _boxes((0, 0, 16, 16), (24, 8, 40, 32))}
NOTHING = {"labels": torch.zeros(0, dtype=torch.int64), "masks": _boxes()}


def _perfect(target, queries=6, classes=3):
    """Logits that say the target, its objects in reverse order at the end of the queries."""
    logits = torch.full((1, queries, classes + 1), -20.0)
    logits[..., classes] = 20.0
    masks = torch.full((1, queries, 8, 12), -20.0)
    small = F.interpolate(target["masks"][None].float(), scale_factor=0.25, mode="area")[0]
    for i, label in enumerate(target["labels"].tolist()):
        logits[0, -1 - i] = -20.0
        logits[0, -1 - i, label] = 20.0
        masks[0, -1 - i] = small[i] * 40 - 20
    return {"pred_logits": logits, "pred_masks": masks}


def test_matching_finds_the_objects(criterion):
    out = _perfect(TARGET)
    ((query, index),) = criterion.matcher(out["pred_logits"], out["pred_masks"], [TARGET])
    assert sorted(zip(query.tolist(), index.tolist(), strict=True)) == [(4, 1), (5, 0)]


def test_perfect_prediction_costs_next_to_nothing(criterion):
    losses = criterion(_perfect(TARGET), [TARGET])
    assert losses["loss_ce"] < 1e-4
    # Bilinear reading blurs the edges of a stride-4 mask.
    assert losses["loss_mask"] < 2.0 and losses["loss_dice"] < 0.25
    worse = _perfect(TARGET)
    worse["pred_masks"] = worse["pred_masks"].roll(6, dims=-1)
    assert criterion(worse, [TARGET])["loss_dice"] > 2 * losses["loss_dice"]


def test_early_predictions_have_suffixes(criterion):
    out = _perfect(TARGET)
    out["aux_outputs"] = [_perfect(TARGET), _perfect(NOTHING)]
    losses = criterion(out, [TARGET])
    names = {
        f"loss_{kind}{suffix}" for kind in ("ce", "mask", "dice") for suffix in ("", "_0", "_1")
    }
    assert set(losses) == names
    assert losses["loss_ce_1"] > 1 > losses["loss_ce_0"]


def test_image_without_objects(criterion):
    logits = torch.zeros(2, 6, 4, requires_grad=True)
    masks = torch.zeros(2, 6, 8, 12, requires_grad=True)
    outputs = {"pred_logits": logits, "pred_masks": masks}
    losses = criterion(outputs, [NOTHING, NOTHING])
    torch.testing.assert_close(losses["loss_ce"], torch.tensor(4.0).log())
    assert losses["loss_mask"] == 0 and losses["loss_dice"] == 0
    sum(losses.values()).backward()
    assert masks.grad is not None and logits.grad.isfinite().all()
    assert criterion(outputs, [NOTHING, TARGET])["loss_mask"] > 0


def test_more_objects_than_queries(criterion):
    many = {"labels": torch.zeros(9, dtype=torch.int64), "masks": _boxes(*[(0, 0, 9, 9)] * 9)}
    outputs = {"pred_logits": torch.zeros(1, 6, 4), "pred_masks": torch.zeros(1, 6, 8, 12)}
    assert criterion(outputs, [many])["loss_mask"].isfinite()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_matching_survives_bad_numbers(bad, criterion):
    out = _perfect(TARGET)
    out["pred_masks"][0, 0] = bad
    out["pred_logits"][0, 1, 0] = bad
    ((query, _),) = criterion.matcher(out["pred_logits"], out["pred_masks"], [TARGET])
    assert sorted(query.tolist()) == [4, 5]


def test_no_object_is_weighted_down(criterion):
    out = {"pred_logits": torch.randn(1, 6, 4), "pred_masks": torch.randn(1, 6, 8, 12)}
    want = F.cross_entropy(out["pred_logits"][0], torch.full((6,), 3))
    # All targets carry the same weight, which the weighted mean takes out again.
    torch.testing.assert_close(criterion(out, [NOTHING])["loss_ce"], want)
    assert criterion.empty_weight.tolist() == pytest.approx([1, 1, 1, 0.1])


def test_pairwise_terms_agree_with_single_ones():
    logits, wanted = torch.randn(4, 50), (torch.rand(3, 50) > 0.5).float()
    for q in range(4):
        for t in range(3):
            bce = F.binary_cross_entropy_with_logits(logits[q], wanted[t])
            torch.testing.assert_close(pairwise_bce(logits, wanted)[q, t], bce)
            single = dice(logits[q : q + 1], wanted[t : t + 1])[0]
            torch.testing.assert_close(pairwise_dice(logits, wanted)[q, t], single)


def test_masks_of_any_size_are_read_at_the_same_place():
    small = torch.rand(2, 1, 4, 6)
    large = F.interpolate(small, scale_factor=8, mode="nearest")
    # Centres of the small mask's pixels.
    y, x = torch.meshgrid((torch.arange(4) + 0.5) / 4, (torch.arange(6) + 0.5) / 6, indexing="ij")
    points = torch.stack((x, y), -1).view(1, -1, 2)
    got = sample_masks(large[:, 0], points)
    torch.testing.assert_close(got, sample_masks(small[:, 0], points))
    torch.testing.assert_close(got, small.flatten(1))


@pytest.fixture
def deterministic():
    """Deterministic algorithms of PyTorch, for one test."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_deterministic_reading_is_the_same(deterministic):
    masks = torch.randn(3, 9, 14, dtype=torch.float64, requires_grad=True)
    points = torch.rand(3, 500, 2, dtype=torch.float64)
    points[:, 0], points[:, 1] = 0, 1  # where half or more of what is read lies outside
    got = sample_masks(masks, points)
    want = point_sample(masks[:, None], points, align_corners=False).squeeze(1)
    torch.testing.assert_close(got, want)
    weight = torch.randn_like(got)
    grads = [torch.autograd.grad(out, masks, weight)[0] for out in (got, want)]
    torch.testing.assert_close(*grads)


def test_deterministic_reading_ignores_what_is_outside(deterministic):
    masks = torch.full((1, 2, 2), torch.inf)
    assert sample_masks(masks, torch.zeros(1, 1, 2)).item() == torch.inf


def test_images_may_differ_in_the_size_of_their_masks(criterion):
    small = {"labels": torch.tensor([1], dtype=torch.int32), "masks": _boxes((2, 2, 9, 9))}
    large = {"labels": torch.tensor([0, 2]), "masks": _boxes(*[(0, 0, 40, 40)] * 2, size=(64, 96))}
    none = {"labels": torch.zeros(0, dtype=torch.int64), "masks": torch.zeros(0, 0, 0)}
    outputs = {"pred_logits": torch.zeros(3, 6, 4), "pred_masks": torch.zeros(3, 6, 8, 12)}
    losses = criterion(outputs, [small, none, large])
    torch.testing.assert_close(losses["loss_mask"], torch.tensor(2.0).log())
    assert losses["loss_dice"].isfinite()


def test_sums_do_not_overflow_in_16_bits(criterion):
    logits, wanted = torch.full((2, 12544), 12.0), torch.zeros(3, 12544)
    with torch.autocast("cpu", dtype=torch.float16):
        out = {"pred_logits": torch.randn(1, 6, 4), "pred_masks": torch.full((1, 6, 8, 12), 12.0)}
        losses = criterion(out, [TARGET])
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    torch.testing.assert_close(pairwise_bce(logits, wanted), torch.full((2, 3), 12.0))
