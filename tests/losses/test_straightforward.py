"""Matching and losses against the straightforward way to compute them, on the same points."""

import importlib
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from aff_seg.losses import HungarianMatcher, SetCriterion, points

TOOLS = Path(__file__).parents[2] / "tools"
CLASSES, QUERIES, POINTS = 5, 12, 300
# What makes a GPU wait: numbers that the host asks for, and results of unknown size.
WAITING = {"aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten._unique2"}


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    return importlib.import_module("bench.straightforward")


@pytest.fixture
def settings(plain):
    return plain.Settings(CLASSES, num_points=POINTS)


@pytest.fixture
def criterion(settings):
    matcher = HungarianMatcher(
        cost_class=settings.cost_class,
        cost_mask=settings.cost_mask,
        cost_dice=settings.cost_dice,
        num_points=POINTS,
    )
    return SetCriterion(
        num_classes=CLASSES,
        matcher=matcher,
        no_object_weight=settings.no_object_weight,
        num_points=POINTS,
        oversample_ratio=settings.oversample_ratio,
        importance_sample_ratio=settings.importance_sample_ratio,
    )


def make_targets(counts, sizes, dtype=torch.bool):
    """Boxes at random places."""
    targets = []
    for count, (height, width) in zip(counts, sizes, strict=True):
        corner, extent = torch.rand(2, count, 2) * torch.tensor([height, width])
        y, x = torch.arange(height)[:, None], torch.arange(width)
        near, far = corner[..., None, None], (corner + extent)[..., None, None]
        masks = (y >= near[:, 0]) & (y < far[:, 0]) & (x >= near[:, 1]) & (x < far[:, 1])
        targets.append({"labels": torch.randint(CLASSES, (count,)), "masks": masks.to(dtype)})
    return targets


def make_outputs(images, predictions=3):
    made = [
        {
            "pred_logits": torch.randn(images, QUERIES, CLASSES + 1, requires_grad=True),
            "pred_masks": (3 * torch.randn(images, QUERIES, 9, 14)).requires_grad_(),
        }
        for _ in range(predictions)
    ]
    return {**made[-1], "aux_outputs": made[:-1]}


def leaves(outputs):
    predictions = [outputs, *outputs["aux_outputs"]]
    return [p[key] for p in predictions for key in ("pred_logits", "pred_masks")]


def gradients(losses, outputs):
    # Weights, so that terms cannot be exchanged.
    total = sum((i + 1) * losses[name] for i, name in enumerate(sorted(losses)))
    return torch.autograd.grad(total, leaves(outputs))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
@pytest.mark.parametrize("counts", [(4, 7), (0, 3), (5, 2 * QUERIES)])
def test_losses_and_gradients_are_those_of_the_plain_way(
    counts, dtype, deterministic, plain, settings, criterion
):
    targets = make_targets(counts, [(36, 56), (40, 48)], dtype)
    outputs = make_outputs(2)
    torch.manual_seed(3)
    want = plain.straightforward_losses(outputs, targets, settings)
    found = []
    try:
        torch.use_deterministic_algorithms(deterministic)
        for _ in range(2):
            torch.manual_seed(3)
            losses = criterion(outputs, targets)
            found.append((losses, gradients(losses, outputs)))
    finally:
        torch.use_deterministic_algorithms(False)
    (losses, gradient), (again, gradient_again) = found
    assert losses == again
    assert all(torch.equal(*pair) for pair in zip(gradient, gradient_again, strict=True))
    assert losses.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=1e-6, msg=name)
    for got, expected in zip(gradient, gradients(want, outputs), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_matches_are_those_of_the_plain_way(plain, settings, criterion):
    targets = make_targets((6, 0, 3), [(36, 56)] * 3)
    outputs = make_outputs(3)
    predictions = [outputs, *outputs["aux_outputs"]]
    torch.manual_seed(5)
    found = criterion.matcher.match_all(predictions, targets)
    torch.manual_seed(5)
    for prediction, images in zip(predictions, found, strict=True):
        for image, (query, index) in enumerate(images):
            logits, masks = (prediction[key][image] for key in ("pred_logits", "pred_masks"))
            want = plain.match(logits, masks, targets[image], settings)
            assert (query.tolist(), index.tolist()) == want
    alone = criterion.matcher(outputs["pred_logits"], outputs["pred_masks"], targets)
    assert [len(query) for query, _ in alone] == [6, 0, 3]


def test_nothing_asks_the_device_for_numbers(criterion):
    seen = set()

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.add(str(func).rsplit(".", 1)[0])
            return func(*args, **(kwargs or {}))

    outputs, targets = make_outputs(2), make_targets((3, 5), [(36, 56)] * 2)
    with Calls():
        sum(criterion(outputs, targets).values()).backward()
    assert "aten.topk" in seen
    assert not seen & WAITING


def test_chosen_points_are_the_least_certain(monkeypatch):
    masks = torch.randn(5, 9, 14)
    options = {"oversample_ratio": 3.0, "importance_sample_ratio": 0.75}
    torch.manual_seed(1)
    drawn = points.draw_uncertain_points(masks, 40, **options)
    assert drawn.shape == (5, 40, 2) and 0 <= drawn.min() and drawn.max() <= 1
    torch.manual_seed(1)
    every = torch.rand(5, 130, 2)
    assert torch.equal(drawn[:, 30:], every[:, 120:])
    certainty = points.sample_masks(masks, every[:, :120]).abs()
    bound = certainty.sort(dim=1).values[:, 29]
    assert (points.sample_masks(masks, drawn[:, :30]).abs().max(dim=1).values <= bound + 1e-6).all()
    # However many masks are looked at together.
    monkeypatch.setattr(points, "_CANDIDATES", 2 * 120)
    torch.manual_seed(1)
    assert torch.equal(points.draw_uncertain_points(masks, 40, **options), drawn)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_masks_of_any_type_are_read_alike(dtype):
    masks = (torch.rand(3, 7, 11) > 0.5).to(dtype)
    places = torch.rand(1, 200, 2)
    places[0, :4] = torch.tensor([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
    want = points.sample_masks(masks.float(), places.expand(3, -1, -1))
    torch.testing.assert_close(points.sample_masks(masks, places), want)
    torch.testing.assert_close(points.sample_masks(masks.float(), places), want)
    torch.testing.assert_close(points.SharedReader(masks)(places[0]), want.T)
    # A quarter of a corner pixel is left at the corner itself.
    torch.testing.assert_close(want[:, 0], masks[:, 0, 0] / 4)
