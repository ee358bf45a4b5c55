"""A config loads, or says in one sentence what is wrong with it."""

from pathlib import Path

import pytest
import torch

from aff_seg.errors import UserError
from aff_seg.setup_cfg import announce_device, find_config, load_cfg

CONFIGS = Path(__file__).parents[1] / "configs"
MINI = str(CONFIGS / "cityscapes" / "panoptic" / "aff_mini.yaml")


def error_of(config_file, opts=()):
    """The sentence that loading ends with."""
    with pytest.raises(UserError) as caught:
        load_cfg(str(config_file), opts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_options_override_the_file_and_the_device_fits_the_machine():
    cfg = load_cfg(MINI, ["SOLVER.MAX_ITER", "7", "DATASETS.TEST", "('a', 'b')"])
    assert cfg.SOLVER.MAX_ITER == 7
    assert cfg.DATASETS.TEST == ("a", "b")
    assert cfg.MODEL.DEVICE == ("cuda" if torch.cuda.is_available() else "cpu")
    assert not cfg.is_frozen()


def test_detectron2s_architectures_have_its_mapper_unless_another_is_named(tmp_path):
    path = tmp_path / "retinanet.yaml"
    path.write_text("MODEL: {META_ARCHITECTURE: RetinaNet}\n")
    assert load_cfg(str(path)).INPUT.DATASET_MAPPER_NAME == "detectron2"
    named = ["INPUT.DATASET_MAPPER_NAME", "mine"]
    assert load_cfg(str(path), named).INPUT.DATASET_MAPPER_NAME == "mine"
    assert load_cfg(MINI).INPUT.DATASET_MAPPER_NAME == "mask_former_panoptic"
    retinanet = ["MODEL.META_ARCHITECTURE", "RetinaNet"]
    ours = load_cfg(MINI, [*retinanet, "MODEL.BACKBONE.NAME", "build_aff_backbone"])
    assert ours.INPUT.DATASET_MAPPER_NAME == "mask_former_panoptic"


def test_cpu_is_announced_in_one_line(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    announce_device(load_cfg(MINI, ["MODEL.DEVICE", "cuda"]))
    assert caplog.messages == ["No GPU is visible: running on the CPU."]


def test_a_gpu_beyond_those_visible_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert load_cfg(MINI, ["MODEL.DEVICE", "cuda:1"]).MODEL.DEVICE == "cuda:1"
    assert error_of(MINI, ["MODEL.DEVICE", "cuda:2"]).endswith("the GPUs visible end at 1.")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("SOLVER.BASELR", "SOLVER.BASE_LR"),
        ("MODEL.AFF.DS_RATTE", "MODEL.AFF.DS_RATE"),
        ("MODEL.ALPHA", "MODEL.AFF.ALPHA"),
    ],
)
def test_misspelt_option_names_the_nearest_key(wrong, right):
    message = f"Command line: there is no config key {wrong}; did you mean {right}?"
    assert error_of(MINI, [wrong, "1"]) == message


def test_misspelt_key_in_a_base_names_that_file(tmp_path):
    base = tmp_path / "base.yaml"
    base.write_text("MODEL: {AFF: {CLUSTERSIZE: 8}}\n")
    leaf = tmp_path / "leaf.yaml"
    leaf.write_text("_BASE_: base.yaml\nSEED: 1\n")
    assert error_of(leaf) == (
        f"{base}: there is no config key MODEL.AFF.CLUSTERSIZE; "
        "did you mean MODEL.AFF.CLUSTER_SIZE?"
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "SOLVER: {MAX_ITER: many}",
            "SOLVER.MAX_ITER is 'many', but must be of type int, like its default 40000.",
        ),
        ("SOLVER: 3", "SOLVER is a group of keys, not a key with a value."),
        ("- a\n- b", "must hold KEY: VALUE settings, but holds ['a', 'b']."),
        ("", "must hold KEY: VALUE settings, but holds None."),
        ("A: [1", "is not plain yaml: "),
        ("A: !!python/object/apply:os.getcwd []", "is not plain yaml: "),
        ("_BASE_: gone.yaml", "its _BASE_ file"),
        ("_BASE_: bad.yaml", "inherits itself through _BASE_."),
    ],
)
def test_bad_file_is_told_in_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    message = error_of(path)
    assert str(path) in message
    assert sentence in message


def test_bad_options_are_told_in_one_sentence():
    assert "SOLVER.MAX_ITER is 'many'" in error_of(MINI, ["SOLVER.MAX_ITER", "many"])
    assert "come in pairs KEY VALUE" in error_of(MINI, ["SOLVER.MAX_ITER", "1", "--resume"])


def test_unknown_variant_lists_those_there_are():
    missing = CONFIGS / "ade20k" / "semantic" / "aff_huge.yaml"
    assert error_of(missing) == (
        f"Config file {missing} does not exist; {missing.parent} has aff_base, aff_mini, "
        "aff_mini_1_5th, aff_small, aff_small_1_5th, aff_tiny, aff_tiny_1_5th, r50, swin_tiny."
    )
    assert error_of("nowhere/aff_mini.yaml").startswith("There is no config nowhere/aff_mini.yaml;")
    assert error_of("").startswith("Give a config")


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.MAX_ITER", "0"], "SOLVER.MAX_ITER is 0, but must be at least 1"),
        (["MODEL.AFF.CLUSTER_SIZE", "-3"], "CLUSTER_SIZE is -3, but must be at least 1"),
        (["MODEL.BACKBONE.NAME", "AutoFocusFormr"], "no such part; take AutoFocusFormer"),
        (["MODEL.META_ARCHITECTURE", "MaskFormr"], "no such part; take MaskFormer"),
        (["INPUT.FORMAT", "RBG"], "'RBG', but the order of channels must be one of RGB, BGR"),
        (["MODEL.DEVICE", "gpu"], "MODEL.DEVICE is 'gpu', but must be cpu, cuda, or cuda:"),
        (["MODEL.DEVICE", "cuda:x"], "MODEL.DEVICE is 'cuda:x', but must be"),
    ],
)
def test_values_that_no_model_can_have(opts, message):
    with pytest.raises(UserError, match=message):
        load_cfg(str(CONFIGS / "cityscapes/panoptic/aff_mini.yaml"), opts)


def test_tokens_are_not_for_detectors():
    config = str(CONFIGS / "detectron2" / "mask_rcnn_aff_tiny_fpn_3x.yaml")
    with pytest.raises(UserError, match="GeneralizedRCNN takes feature maps; take build_aff_back"):
        load_cfg(config, ["MODEL.BACKBONE.NAME", "AutoFocusFormer"])


def test_schedule_is_rescaled_to_the_batch_on_request():
    recipe = load_cfg(MINI)
    half = str(recipe.SOLVER.IMS_PER_BATCH // 2)
    same = load_cfg(MINI, ["SOLVER.IMS_PER_BATCH", half])
    assert same.SOLVER.MAX_ITER == recipe.SOLVER.MAX_ITER
    asked = ["SOLVER.REFERENCE_BATCH", str(recipe.SOLVER.IMS_PER_BATCH), "SOLVER.STEPS", "(300,)"]
    cfg = load_cfg(MINI, ["SOLVER.IMS_PER_BATCH", half, *asked])
    assert cfg.SOLVER.BASE_LR == pytest.approx(recipe.SOLVER.BASE_LR / 2)
    assert cfg.SOLVER.STEPS == (600,)
    for section, key in (
        ("SOLVER", "MAX_ITER"),
        ("SOLVER", "WARMUP_ITERS"),
        ("SOLVER", "CHECKPOINT_PERIOD"),
        ("TEST", "EVAL_PERIOD"),
    ):
        assert cfg[section][key] == 2 * recipe[section][key], key
    # A config that was saved and is loaded again stays as it is.
    assert cfg.SOLVER.REFERENCE_BATCH == cfg.SOLVER.IMS_PER_BATCH
    unchanged = load_cfg(MINI, asked)
    assert unchanged.SOLVER.BASE_LR == recipe.SOLVER.BASE_LR
    assert unchanged.SOLVER.MAX_ITER == recipe.SOLVER.MAX_ITER


@pytest.mark.parametrize(
    ("opts", "sentence"),
    [
        (["SOLVER.REFERENCE_BATCH", "-1"], "SOLVER.REFERENCE_BATCH is -1, but must be a batch"),
        (
            ["SOLVER.REFERENCE_BATCH", "8", "SOLVER.REFERENCE_WORLD_SIZE", "2"],
            "must be a batch size, with SOLVER.REFERENCE_WORLD_SIZE 0, or 0.",
        ),
        (["SOLVER.AMP.PRECISION", "float8"], "must be one of float16, bfloat16."),
        (["SOLVER.ACCUMULATE", "0"], "SOLVER.ACCUMULATE is 0, but must be at least 1."),
    ],
)
def test_wrong_keys_of_the_solver_are_told(opts, sentence):
    assert sentence in error_of(MINI, opts)


def test_a_config_is_found_by_its_name():
    assert find_config("ade20k/semantic/aff_tiny").endswith("configs/ade20k/semantic/aff_tiny.yaml")
    assert find_config(Path("configs/quick/shapes_demo.yaml")) == "configs/quick/shapes_demo.yaml"
    assert load_cfg("cityscapes/panoptic/aff_mini") == load_cfg(MINI)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("ade20k/semantic/aff_tny", "ade20k/semantic/aff_tiny"),
        ("configs/ade20k/semantics/r5.yaml", "ade20k/semantic/r50"),
        ("detectron2/mask_rcnn_aff_tiny_fpn_1x", "detectron2/mask_rcnn_aff_tiny_fpn_3x"),
    ],
)
def test_a_name_that_is_wrong_gets_the_nearest_one(wrong, right):
    with pytest.raises(UserError, match=f"There is no config {wrong}; .* take {right}\\.$"):
        find_config(wrong)
