"""Test-time augmentation: views that are averaged, and how a run reports them."""

import json
import weakref

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from torch import nn
from train_runs import run

from aff_seg.data import EvaluationMapper
from aff_seg.data.shapes import write_dataset
from aff_seg.errors import UserError
from aff_seg.evaluation import check_evaluators, semantic_tests
from aff_seg.inference import SemanticTTA
from aff_seg.setup_cfg import load_cfg

QUICK = "quick/shapes_cityscapes_panoptic"
SEMANTIC_ALONE = ["MODEL.MASK_FORMER.TEST.INSTANCE_ON", False]
SEMANTIC_ALONE += ["MODEL.MASK_FORMER.TEST.PANOPTIC_ON", False]


class Colours(nn.Module):
    """A model whose scores are the colours of the image; it notes the images that it is given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def semantic_scores(self, batched_inputs):
        (given,) = batched_inputs
        self.seen.append(given["image"])
        size = (given["height"], given["width"])
        return list(F.interpolate(given["image"][None].float(), size))


class Brighter(Colours):
    """A model that sees more on the left."""

    def semantic_scores(self, batched_inputs):
        (scores,) = super().semantic_scores(batched_inputs)
        return [scores + torch.linspace(100, 0, scores.shape[2])]


def image_of(height, width):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def average(model, image, sizes, *, flip, max_size=1000, **size):
    tta = SemanticTTA(model, min_sizes=sizes, max_size=max_size, flip=flip)
    (result,) = tta([{"image": image, **size}])
    assert set(result) == {"sem_seg"}
    return result["sem_seg"]


def test_mirror_images_are_turned_back():
    image = image_of(20, 31)
    torch.testing.assert_close(average(Colours(), image, [20], flip=True), image.float())
    plain = average(Brighter(), image, [20], flip=False)
    both = average(Brighter(), image, [20], flip=True)
    torch.testing.assert_close(plain - image, torch.linspace(100, 0, 31).expand(3, 20, 31))
    torch.testing.assert_close(both - image, torch.full((3, 20, 31), 50.0))


def test_views_have_the_sizes_asked_for_and_count_alike():
    model, image = Colours(), image_of(20, 60)
    found = average(model, image, [10, 20, 40], flip=True, max_size=90, height=40, width=120)
    sizes = [tuple(view.shape[1:]) for view in model.seen]
    assert sizes == [(10, 30)] * 2 + [(20, 60)] * 2 + [(30, 90)] * 2
    for plain, mirrored in zip(model.seen[::2], model.seen[1::2], strict=True):
        assert torch.equal(plain, mirrored.flip(-1))
    views = [F.interpolate(view[None].float(), (40, 120))[0] for view in model.seen[::2]]
    turned = [F.interpolate(view[None].float(), (40, 120))[0].flip(-1) for view in model.seen[1::2]]
    torch.testing.assert_close(found, sum([*views, *turned]) / 6)


def test_a_line_of_pixels_keeps_one():
    model = Colours()
    assert average(model, image_of(1, 70), [1], flip=False, max_size=8).shape == (3, 1, 70)
    assert model.seen[0].shape == (3, 1, 8)


def test_scores_pass_one_by_one():
    """However many views there are, nothing but the sum is in memory when the next one comes."""
    alive, maps = [], []

    class Counting(Colours):
        def semantic_scores(self, batched_inputs):
            alive.append(sum(scores() is not None for scores in maps))
            (scores,) = super().semantic_scores(batched_inputs)
            maps.append(weakref.ref(scores))
            return [scores]

    average(Counting(), image_of(8, 8), [8] * 3, flip=True, height=8, width=8)
    assert alive == [0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("opts", [[], SEMANTIC_ALONE], ids=["panoptic", "semantic"])
def test_one_view_is_the_plain_result(load_config, tiny_opts, tmp_path, opts):
    write_dataset(
        layout="cityscapes", root=tmp_path, train=1, val=1, size=(64, 128), progress=False
    )
    (path,) = tmp_path.glob("cityscapes/leftImg8bit/val/*/*.png")
    opts = [*tiny_opts, *opts, "INPUT.MIN_SIZE_TEST", 48, "INPUT.MAX_SIZE_TEST", 90]
    opts += ["TEST.AUG.MIN_SIZES", [48], "TEST.AUG.MAX_SIZE", 90, "TEST.AUG.FLIP", False]
    cfg = load_config(QUICK, *opts)
    model = build_model(cfg).eval()
    record = {"file_name": str(path), "height": 64, "width": 128}
    (plain,) = model([EvaluationMapper(cfg, is_train=False)(record)])
    cfg.INPUT.MIN_SIZE_TEST = 0
    (found,) = SemanticTTA(cfg, model)([EvaluationMapper(cfg, is_train=False)(record)])
    assert torch.equal(found["sem_seg"], plain["sem_seg"])
    assert plain["sem_seg"].shape == (19, 64, 128)


def test_a_model_keeps_its_mode(load_config, tiny_opts):
    model = build_model(load_config(QUICK, *tiny_opts))
    for mode in (True, False):
        model.train(mode)
        tta = SemanticTTA(model, min_sizes=[8], max_size=8, flip=False)
        assert tta.training is model.training is mode


@pytest.mark.parametrize(
    "key, value, sentence",
    [
        ("MIN_SIZES", "()", r"MIN_SIZES is \(\), but must hold one or more lengths"),
        ("MIN_SIZES", "(512, 0)", r"MIN_SIZES is \(512, 0\), but must hold"),
        ("MIN_SIZES", "(512.5,)", r"MIN_SIZES is \(512.5,\), but must hold"),
        ("MIN_SIZES", "512", "MIN_SIZES is '512', but must be of type tuple"),
        ("MAX_SIZE", "0", "MAX_SIZE is 0, but must be at least 1"),
        ("FLIP", "horizontal", "FLIP is 'horizontal', but must be of type bool"),
    ],
)
def test_wrong_values_are_told(key, value, sentence):
    config = "configs/ade20k/semantic/aff_mini.yaml"
    with pytest.raises(UserError, match=f"TEST.AUG.{sentence}"):
        load_cfg(config, ["TEST.AUG.ENABLED", "True", f"TEST.AUG.{key}", value])
    with pytest.raises(ValueError, match="at least one size"):
        SemanticTTA(nn.Identity(), min_sizes=(), max_size=8, flip=True)


def test_there_must_be_semantic_results(load_config, tmp_path):
    cfg = load_config("cityscapes/instance/aff_mini", "TEST.AUG.ENABLED", True)
    sentence = "of semantic results alone, which are not scored on cityscapes_fine_instance_seg_val"
    with pytest.raises(UserError, match=sentence):
        check_evaluators(cfg)
    check_evaluators(load_config("cityscapes/instance/aff_mini"))
    cfg = load_config("cityscapes/panoptic/aff_mini", "TEST.AUG.ENABLED", True)
    check_evaluators(cfg)
    assert semantic_tests(cfg) == ["cityscapes_fine_panoptic_val"]
    cfg.DATASETS.TEST = ("cityscapes_fine_instance_seg_val", "cityscapes_fine_panoptic_val")
    assert semantic_tests(cfg) == ["cityscapes_fine_panoptic_val"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    write_dataset(layout="cityscapes", root=root, train=4, val=2, size=(64, 128), progress=False)
    return root


def test_training_and_evaluation_report_both(shapes, tmp_path):
    """Of a panoptic model, by two processes."""
    settings = {
        "TEST__AUG__ENABLED": True,
        "TEST__AUG__MIN_SIZES": "(48, 64)",
        "TEST__AUG__MAX_SIZE": 128,
        "TEST__EVAL_PERIOD": 1,
        "TEST__BEST_METRIC": "mIoU",
    }
    processes = ["--num-gpus", "2", "--dist-url", "auto"]
    output = tmp_path / "out"
    code, out, err = run(shapes, output, *processes, SOLVER__MAX_ITER=2, **settings)
    assert code == 0, err
    assert out.count("4 views of an image: it is of semantic results alone.") == 1
    assert out.splitlines()[-3].split()[-2:] == ["mIoU", "mIoU_TTA"]
    (trained,) = json.loads((output / "results.json").read_text()).values()
    assert set(trained) == {"panoptic_seg", "segm", "sem_seg", "sem_seg_TTA"}
    assert set(trained["sem_seg_TTA"]) == set(trained["sem_seg"])
    rows = [json.loads(row) for row in (output / "metrics.json").read_text().splitlines()]
    assert [("sem_seg/IoU" in row, "sem_seg_TTA/IoU" in row) for row in rows][-1] == (True, True)
    assert not any("sem_seg_TTA/IoU" in row for row in rows[:-1])
    assert (output / "model_best.pth").is_file()
    weights = output / "model_final.pth"
    code, out, err = run(
        shapes, tmp_path / "again", "--eval-only", MODEL__WEIGHTS=weights, **settings
    )
    assert code == 0, err
    (found,) = json.loads((tmp_path / "again" / "results.json").read_text()).values()
    assert found["sem_seg_TTA"] == pytest.approx(trained["sem_seg_TTA"], nan_ok=True)


def test_nothing_to_test_is_no_error(shapes, tmp_path):
    settings = {"TEST__AUG__ENABLED": True, "DATASETS__TEST": "()", "SOLVER__MAX_ITER": 1}
    code, _, err = run(shapes, tmp_path / "out", **settings)
    assert code == 0, err
