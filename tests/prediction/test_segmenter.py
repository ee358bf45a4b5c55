"""A model in a program: pictures in any form, alone or in lists, whole or in tiles."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import CONFIG, OPTS, save_weights

from aff_seg.data.metadata import class_name
from aff_seg.errors import UserError
from aff_seg.prediction.segmentation import Found, PackedMask, Segmentation
from aff_seg.prediction.segmenter import MAX_RESULT_PIXELS, Segmenter, result_size
from aff_seg.prediction.tiles import LEAST_SCORE
from aff_seg.visualization.token_figure import FIGURES

TASKS = ("SEMANTIC_ON", "PANOPTIC_ON", "INSTANCE_ON")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_weights(tmp_path_factory.mktemp("weights"))


def segmenter(weights, *opts, **options):
    return Segmenter.from_config(CONFIG, weights, device="cpu", opts=[*OPTS, *opts], **options)


def random_image(*size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def assert_same(one, other):
    for name in ("panoptic", "semantic", "masks", "boxes", "classes"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4)
    assert one.segments == other.segments


def confident(result):
    """What tiles keep of a result: the instances with a pixel and a score that is not tiny."""
    sure = [one for one in result.at_least(LEAST_SCORE).found if len(one.mask.bits)]
    return replace(result, found=sure)


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


def test_tokens_of_a_list_are_those_of_its_pictures(weights):
    seg, images = segmenter(weights), [random_image(64, 96, seed=seed) for seed in range(3)]
    images[1] = images[1][:40]
    for image, together in zip(images, seg(images, tokens=True), strict=True):
        alone = seg(image, tokens=True)
        assert together.tokens.keys() == alone.tokens.keys()
        for level, positions in alone.tokens.items():
            np.testing.assert_array_equal(together.tokens[level], positions)
        for level, importance in alone.importance.items():
            np.testing.assert_allclose(together.importance[level], importance, rtol=1e-4)


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
    other, seg.keep = segmenter(weights), 0.5
    assert other.keep == 0.25
    # Also where several images pass together, and in tiles.
    alone = seg(image)
    assert_same(seg([image, random_image(64, 128, seed=1)])[0], alone)
    unscaled = segmenter(weights, "INPUT.MIN_SIZE_TEST", 0)
    unscaled.keep = 0.5
    assert_same(unscaled(image, tile=128), confident(unscaled(image)))
    seg.keep = None
    assert seg.keep == 0.25


@pytest.mark.parametrize(
    ("backbone", "name"),
    [("build_aff_backbone", "AutoFocusFormerGrid"), ("build_resnet_backbone", "ResNet")],
)
def test_feature_maps_are_no_tokens(tmp_path, backbone, name):
    opts = ["MODEL.BACKBONE.NAME", backbone, "MODEL.RESNETS.DEPTH", 18]
    opts += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    opts += ["MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]]
    seg, image = segmenter(save_weights(tmp_path, opts=opts), *opts), random_image(64, 96)
    assert seg(image).panoptic.shape == (64, 96)
    with pytest.raises(UserError, match=f"the backbone {name} gives feature maps"):
        seg(image, tokens=True)
    with pytest.raises(UserError, match=f"the backbone {name} gives feature maps"):
        seg.draw(image, kind="tokens")
    if name == "ResNet":
        with pytest.raises(UserError, match="ResNet keeps all its cells"):
            seg.keep = 0.5
    else:
        seg.keep = 0.5
        assert seg.keep == 0.5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("keep", value) for value in (0, 1.01, float("nan"), "a")),
        *(("confidence", value) for value in (-0.1, 1.1, float("nan"), "a")),
        *(("batch", value) for value in (0, 1.5, None)),
    ],
)
def test_settings_that_make_no_sense_are_user_errors(weights, name, value):
    seg = segmenter(weights)
    before = getattr(seg, name)
    with pytest.raises(UserError, match="must be .*1"):
        setattr(seg, name, value)
    assert getattr(seg, name) == before


def test_channels_are_in_the_order_of_the_config(weights):
    image = random_image(64, 64)
    rgb, bgr = (segmenter(weights, "INPUT.FORMAT", order) for order in ("RGB", "BGR"))
    assert_same(rgb(image), bgr(np.ascontiguousarray(image[..., ::-1])))
    with pytest.raises(UserError, match="INPUT.FORMAT is 'RBG', .* one of RGB, BGR"):
        segmenter(weights, "INPUT.FORMAT", "RBG")


def test_without_a_dataset_classes_have_numbers(weights):
    seg = segmenter(weights, "DATASETS.TRAIN", "()", "DATASETS.TEST", "()")
    assert class_name(seg.metadata, 3, False) == "class 3"


def test_bfloat16_comes_close(weights):
    image = random_image(64, 96)
    exact, short = (segmenter(weights, **kind)(image) for kind in ({}, {"dtype": torch.bfloat16}))
    assert (exact.semantic == short.semantic).mean() > 0.8


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dtype": torch.float16}, "torch.float16 is for GPUs; on a CPU take torch.bfloat16"),
        ({"dtype": torch.float64}, "dtype is torch.float64, but must be one of torch.float32, "),
        ({"dtype": "bfloat16"}, "dtype is 'bfloat16', but must be one of"),
        ({"device": "cuda"}, "device is 'cuda', but no GPU is visible"),
        ({"device": "gpu"}, "MODEL.DEVICE is 'gpu', but must be cpu, cuda, or cuda:<number>"),
        ({"weights": ""}, "weights names no file"),
        ({"weights": "gone.pth"}, "Checkpoint gone.pth does not exist"),
        ({"config": "quick/shapes_dem"}, "no config quick/shapes_dem; .* take quick/shapes_demo"),
        ({"opts": ["TEST.AUG.ENABLED"]}, "come in pairs KEY VALUE"),
    ],
)
def test_a_model_that_cannot_be_had_is_a_user_error(weights, monkeypatch, options, sentence):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    asked = {"config": CONFIG, "weights": weights, "device": "cpu", "opts": OPTS, **options}
    with pytest.raises(UserError, match=sentence):
        Segmenter.from_config(**asked)


@pytest.mark.parametrize("part", ["backbone", "other classes"])
def test_weights_of_a_part_of_the_model_are_refused(weights, tmp_path, part):
    state = torch.load(weights, weights_only=True)["model"]
    if part == "backbone":
        state = {name: value for name, value in state.items() if name.startswith("backbone.")}
    else:
        state["sem_seg_head.predictor.class_embed.weight"] = torch.zeros(81, 32)
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(UserError, match="part.pth does not hold all of this model .* train from"):
        segmenter(tmp_path / "part.pth")


def test_devices_and_paths_may_be_objects(weights):
    config = Path("configs", f"{CONFIG}.yaml")
    seg = Segmenter.from_config(config, Path(weights), device=torch.device("cpu"), opts=OPTS)
    assert seg.model.device.type == "cpu"


def test_draw_and_json(weights):
    seg, image = segmenter(weights), random_image(700, 640)
    result = seg(image)
    np.testing.assert_array_equal(seg.draw(image, result), seg.draw(image))
    assert (seg.draw(image) != image).any()
    assert len(seg.to_json(result)["panoptic"]) == len(result.segments)


def test_results_of_a_list_are_taken_one_by_one(weights):
    seg, image = segmenter(weights), random_image(64, 64)
    for use in (seg.to_json, lambda found: seg.draw(image, found)):
        with pytest.raises(UserError, match="not a list; of a list, give the results one by one"):
            use(seg([image]))


@pytest.mark.parametrize("kind", ["overlay", *FIGURES])
def test_every_kind_of_picture_is_drawn(weights, kind):
    seg, image = segmenter(weights), random_image(64, 96)
    found = seg(image, tokens=True)
    drawn = seg.draw(image, found, kind=kind)
    assert drawn.dtype == np.uint8 and drawn.ndim == 3
    np.testing.assert_array_equal(seg.draw(image, kind=kind), drawn)
    if kind != "overlay":
        assert (seg.draw(image, found, kind=kind, blurred=True) != drawn).any()
        with pytest.raises(UserError, match="segment the image with tokens=True"):
            seg.draw(image, seg(image), kind=kind)
    with pytest.raises(UserError, match=r"\(64, 96\), but the image has \(60, 96\)"):
        seg.draw(image[:60], found, kind=kind)
    with pytest.raises(UserError, match="kind is 'heat', but must be overlay, tokens, "):
        seg.draw(image, found, kind="heat")


def test_instances_are_drawn_from_the_confidence_on(weights):
    seg = segmenter(weights)
    image = np.full((700, 640, 3), 100, dtype=np.uint8)
    mask = np.zeros(image.shape[:2], dtype=bool)
    mask[100:400, 100:400] = True
    found = Segmentation(mask.shape, found=[Found(PackedMask.of(mask), 0.4, 0)])
    assert (seg.draw(image, found) == image).all()
    seg.confidence = 0.3
    assert (seg.draw(image, found)[mask] != 100).any(-1).mean() > 0.9
    seg.confidence = 0.45
    assert (seg.draw(image, found) == image).all()


def test_one_tile_is_the_image_as_it_is(weights):
    whole = segmenter(weights, "INPUT.MIN_SIZE_TEST", 0)
    image = random_image(64, 96)
    one = confident(whole(image))
    assert one.found and one.segments
    assert_same(whole(image, tile=128), one)


@pytest.mark.parametrize(
    ("task", "name"),
    [("SEMANTIC_ON", "semantic"), ("PANOPTIC_ON", "panoptic"), ("INSTANCE_ON", "masks")],
)
def test_tiles_of_a_model_of_one_task(weights, task, name):
    switches = ((f"MODEL.MASK_FORMER.TEST.{t}", t == task) for t in TASKS)
    seg = segmenter(weights, *(word for pair in switches for word in pair))
    seg.confidence = LEAST_SCORE
    image = random_image(64, 128)
    one, tiled = seg(image, tile=128), seg(image, tile=64, overlap=16)
    np.testing.assert_array_equal(getattr(one, name), getattr(seg(image), name))
    assert getattr(tiled, name).shape[-2:] == (64, 128)
    for other in {"semantic", "panoptic", "masks"} - {name}:
        assert getattr(tiled, other) is None


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
        (7, "The image is given as int; give an array, a PIL image or a path"),
        ("missing.png", "missing.png cannot be read"),
        ([np.zeros((4, 4, 3), np.uint8), None], "Image 2 of 2 is given as NoneType"),
        (Image.new("F", (4, 4)), "The image cannot be read as an image: its pixels are floating"),
        ([Image.new("RGB", (0, 4))], "Image 1 of 1 cannot be read as an image: it has 0 x 4"),
    ],
)
def test_other_things_are_user_errors(weights, image, sentence):
    with pytest.raises(UserError, match=sentence):
        segmenter(weights)(image)


def test_options_of_a_call_that_do_not_go_together_are_refused(weights):
    seg, image = segmenter(weights), random_image(64, 64)
    with pytest.raises(UserError, match="tokens=True is for whole images"):
        seg(image, tile=64, tokens=True)
    with pytest.raises(UserError, match="overlap is that of tiles; give tile"):
        seg(image, overlap=8)


def test_models_of_detectron2_are_refused(weights):
    with pytest.raises(UserError, match="META_ARCHITECTURE SemanticSegmentor is not shown here"):
        Segmenter.from_config("detectron2/semantic_aff_tiny_fpn_1x", weights, device="cpu")


@pytest.mark.parametrize("size", [(1, 1), (1024, 2048), (3000, 4000), (20000, 30)])
def test_big_images_get_a_smaller_result(size):
    height, width = result_size(size)
    assert height * width <= MAX_RESULT_PIXELS
    if size[0] * size[1] <= MAX_RESULT_PIXELS:
        assert (height, width) == size
    else:
        assert height / width == pytest.approx(size[0] / size[1], rel=1e-3)
