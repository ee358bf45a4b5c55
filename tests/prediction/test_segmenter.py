"""A model in a program: pictures in any form, alone or in lists, whole or in tiles."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from aff_seg.errors import UserError
from aff_seg.prediction.segmenter import MAX_RESULT_PIXELS, Segmenter, result_size
from aff_seg.prediction.segments import class_name
from aff_seg.setup_cfg import find_config, load_cfg

CONFIG = "quick/shapes_cityscapes_panoptic"
# A model small enough for tests, which with random weights still finds some segments.
TINY = {
    "MODEL.AFF.EMBED_DIM": "[8, 16, 24, 32]",
    "MODEL.AFF.DEPTHS": "[1, 1, 1, 1]",
    "MODEL.AFF.NUM_HEADS": "[1, 2, 2, 2]",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": "32",
    "MODEL.SEM_SEG_HEAD.MASK_DIM": "32",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": "1",
    "MODEL.MASK_FORMER.HIDDEN_DIM": "32",
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": "32",
    "MODEL.MASK_FORMER.DEC_LAYERS": "2",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": "10",
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": "0.0",
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": "0.0",
    "INPUT.MIN_SIZE_TEST": "64",
    "INPUT.MAX_SIZE_TEST": "128",
}
OPTS = [word for pair in TINY.items() for word in pair]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    model = build_model(load_cfg(find_config(CONFIG), OPTS))
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save({"model": model.state_dict()}, path)
    return str(path)


def segmenter(weights, *opts, **options):
    return Segmenter.from_config(CONFIG, weights, device="cpu", opts=[*OPTS, *opts], **options)


def random_image(*size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def assert_same(one, other):
    for name in ("panoptic", "semantic", "masks", "boxes", "classes"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4)
    assert one.segments == other.segments


def test_everything_has_the_size_of_the_image(weights):
    seg = segmenter(weights)
    result = seg(random_image(30, 70))
    assert result.panoptic.shape == result.semantic.shape == (30, 70)
    n = len(result.found)
    assert n > 0 and result.masks.shape == (n, 30, 70) and result.boxes.shape == (n, 4)
    assert result.classes.shape == result.scores.shape == (n,)
    assert result.tokens is None
    ids = {segment["id"] for segment in result.segments}
    assert ids and ids | {0} >= set(np.unique(result.panoptic))


def test_a_picture_may_be_an_array_a_pil_image_or_a_path(weights, tmp_path):
    seg, image = segmenter(weights), random_image(40, 60)
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    expected = seg(image)
    for picture in (Image.fromarray(image), path, str(path)):
        assert_same(seg(picture), expected)


def test_a_list_gives_what_its_pictures_give_alone(weights):
    seg = segmenter(weights)
    seg.batch = 2
    sizes = [(40, 60), (60, 40), (40, 60), (80, 120), (40, 60), (5, 3)]
    images = [random_image(*size, seed=seed) for seed, size in enumerate(sizes)]
    passed = []
    forward = seg.model.forward_with_tokens
    seg.model.forward_with_tokens = lambda requests: (
        passed.append(len(requests)) or forward(requests)
    )
    together = seg(images)
    assert sorted(passed) == [1, 1, 2, 2]
    for image, result in zip(images, together, strict=True):
        assert result.size == image.shape[:2]
        assert_same(result, seg(image))
    assert seg([]) == []


def test_tokens_and_importance_on_request(weights):
    result = segmenter(weights)(random_image(30, 70), tokens=True)
    assert result.input_size == (55, 128)
    levels = ("res2", "res3", "res4", "res5")
    counts = [len(result.tokens[level]) for level in levels]
    assert counts == sorted(counts, reverse=True)
    # The canvas is that of 64 x 128 pixels, the image padded to multiples of 32.
    for positions in result.tokens.values():
        assert positions.shape[1] == 2 and positions.min() >= 0 and (positions < (32, 16)).all()
    assert result.importance.keys() == set(levels[:-1])
    for level, importance in result.importance.items():
        assert importance.shape == (len(result.tokens[level]),)
        assert (importance > 0).all() and (importance < 1).all()


def test_confidence_leaves_out_what_is_unsure(weights):
    seg, image = segmenter(weights), random_image(40, 60)
    every = seg(image)
    middle = float(np.median(every.scores))
    seg.confidence = middle
    assert len(seg(image).found) == (every.scores >= middle).sum()
    seg.confidence = 1.0
    sure = seg(image)
    assert sure.found == [] and sure.segments == [] and not sure.panoptic.any()
    assert (sure.semantic == -1).sum() > 0 and (every.semantic >= 0).all()
    seg.confidence = None
    assert_same(seg(image), every)


def test_the_share_of_tokens_kept_can_be_changed(weights):
    seg, image = segmenter(weights), random_image(64, 128)
    counts = []
    for share in (0.25, 0.5, 0.25):
        seg.keep = share
        assert seg.keep == share
        counts.append(len(seg(image, tokens=True).tokens["res3"]))
    assert counts == [32 * 16 // 4, 32 * 16 // 2, 32 * 16 // 4]
    with pytest.raises(UserError, match="above 0 and at most 1, got 0"):
        seg.keep = 0


def test_channels_are_in_the_order_of_the_config(weights):
    image = random_image(64, 64)
    rgb, bgr = (segmenter(weights, "INPUT.FORMAT", order) for order in ("RGB", "BGR"))
    assert_same(rgb(image), bgr(np.ascontiguousarray(image[..., ::-1])))


def test_without_a_dataset_classes_have_numbers(weights):
    seg = segmenter(weights, "DATASETS.TRAIN", "()", "DATASETS.TEST", "()")
    assert class_name(seg.metadata, 3, False) == "class 3"


def test_bfloat16_comes_close(weights):
    image = random_image(64, 96)
    exact, short = (segmenter(weights, **kind)(image) for kind in ({}, {"dtype": torch.bfloat16}))
    assert (exact.semantic == short.semantic).mean() > 0.8


def test_draw_and_json(weights):
    seg, image = segmenter(weights), random_image(700, 640)
    result = seg(image)
    np.testing.assert_array_equal(seg.draw(image, result), seg.draw(image))
    assert (seg.draw(image) != image).any()
    assert len(seg.to_json(result)["panoptic"]) == len(result.segments)


def test_one_tile_is_the_image_as_it_is(weights):
    whole = segmenter(weights, "INPUT.MIN_SIZE_TEST", 0)
    image = random_image(64, 96)
    one, tiled = whole(image), whole(image, tile=128)
    np.testing.assert_array_equal(tiled.semantic, one.semantic)
    np.testing.assert_array_equal(tiled.panoptic > 0, one.panoptic > 0)
    assert len(tiled.found) <= len(one.found)


def test_tiles_give_a_result_of_the_whole_image(weights):
    result = segmenter(weights)(random_image(100, 150), tile=64, overlap=16)
    assert result.panoptic.shape == result.semantic.shape == (100, 150)
    assert set(np.unique(result.panoptic)) - {0} == {s["id"] for s in result.segments}


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (np.zeros((4, 4), np.uint8), r"array \(4, 4\) of uint8; give \(height, width, 3\)"),
        (np.zeros((3, 4, 4), np.float32), r"of float32; give"),
        (np.zeros((0, 4, 3), np.uint8), r"array \(0, 4, 3\)"),
        (7, "given as int; give an array, a PIL image or a path"),
        ("missing.png", "missing.png cannot be read"),
    ],
)
def test_other_things_are_user_errors(weights, image, sentence):
    with pytest.raises(UserError, match=sentence):
        segmenter(weights)(image)


def test_tokens_of_tiles_are_refused(weights):
    with pytest.raises(UserError, match="tokens=True is for whole images"):
        segmenter(weights)(random_image(64, 64), tile=64, tokens=True)


def test_models_of_detectron2_are_refused(weights):
    with pytest.raises(UserError, match="META_ARCHITECTURE SemanticSegmentor is not shown here"):
        Segmenter.from_config("detectron2/semantic_aff_tiny_fpn_1x", weights, device="cpu")


def test_a_config_is_found_by_its_name():
    assert find_config("ade20k/semantic/aff_tiny").endswith("configs/ade20k/semantic/aff_tiny.yaml")
    with pytest.raises(UserError, match="no config ade20k/semantic/aff_tny; .* aff_tiny|aff_tiny"):
        find_config("ade20k/semantic/aff_tny")


@pytest.mark.parametrize("size", [(1, 1), (1024, 2048), (3000, 4000), (20000, 30)])
def test_big_images_get_a_smaller_result(size):
    height, width = result_size(size)
    assert height * width <= max(MAX_RESULT_PIXELS, 1)
    if size[0] * size[1] <= MAX_RESULT_PIXELS:
        assert (height, width) == size
    else:
        assert height / width == pytest.approx(size[0] / size[1], rel=1e-3)
