"""Every config resolves to the published recipe, and leaves hold only what differs."""

import re
from pathlib import Path

import pytest
import yaml
from detectron2.config import get_cfg

from aff_seg import add_aff_config

CONFIGS = Path(__file__).parents[1] / "configs"
VARIANTS = ("mini", "mini_1_5th", "tiny", "tiny_1_5th", "small", "small_1_5th", "base")
DATASETS = ("ade20k", "coco", "cityscapes")
BEST_METRIC = {"semantic": "mIoU", "instance": "AP", "panoptic": "PQ"}
TASKS = [f"{dataset}/{task}" for dataset in DATASETS for task in BEST_METRIC]

COMMON = {
    "SEED": 0,
    "MODEL.META_ARCHITECTURE": "MaskFormer",
    "MODEL.BACKBONE.NAME": "AutoFocusFormer",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.AFF.RESERVE": True,
    "MODEL.AFF.PATCH_NORM": True,
    "MODEL.AFF.DROP_RATE": 0.0,
    "MODEL.AFF.ATTN_DROP_RATE": 0.0,
    "MODEL.AFF.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 6,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": 8,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": 4,
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD": 1024,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 256,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 256,
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": 255,
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
    "MODEL.MASK_FORMER.HIDDEN_DIM": 256,
    "MODEL.MASK_FORMER.NHEADS": 8,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 2048,
    "MODEL.MASK_FORMER.DEC_LAYERS": 10,
    "MODEL.MASK_FORMER.DEEP_SUPERVISION": True,
    "MODEL.MASK_FORMER.CLASS_WEIGHT": 2.0,
    "MODEL.MASK_FORMER.MASK_WEIGHT": 5.0,
    "MODEL.MASK_FORMER.DICE_WEIGHT": 5.0,
    "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT": 0.1,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 12544,
    "MODEL.MASK_FORMER.OVERSAMPLE_RATIO": 3.0,
    "MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO": 0.75,
    "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 32,
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.8,
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.8,
    "INPUT.FORMAT": "RGB",
    "DATALOADER.NUM_WORKERS": 4,
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": True,
    "SOLVER.OPTIMIZER": "ADAMW",
    "SOLVER.WEIGHT_DECAY": 0.05,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.WEIGHT_DECAY_EMBED": 0.0,
    "SOLVER.BACKBONE_MULTIPLIER": 0.1,
    "SOLVER.WARMUP_FACTOR": 1.0,
    "SOLVER.CLIP_GRADIENTS.ENABLED": True,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.01,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": 2.0,
    "SOLVER.AMP.ENABLED": False,
}

POLYNOMIAL = {
    "SOLVER.LR_SCHEDULER_NAME": "WarmupPolyLR",
    "SOLVER.POLY_LR_POWER": 0.9,
    "SOLVER.POLY_LR_CONSTANT_ENDING": 0.0,
    "SOLVER.WARMUP_ITERS": 0,
    "TEST.EVAL_PERIOD": 5000,
}


def schedule(batch, rate, iterations):
    return {
        "SOLVER.IMS_PER_BATCH": batch,
        "SOLVER.BASE_LR": rate,
        "SOLVER.MAX_ITER": iterations,
    }


def outputs(flags):
    """Which of semantic (S), instance (I) and panoptic (P) results a task asks for."""
    names = {"S": "SEMANTIC_ON", "I": "INSTANCE_ON", "P": "PANOPTIC_ON"}
    return {f"MODEL.MASK_FORMER.TEST.{name}": flag in flags for flag, name in names.items()}


def data(train, test, classes, mapper):
    return {
        "DATASETS.TRAIN": (train,),
        "DATASETS.TEST": (test,),
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": classes,
        "INPUT.DATASET_MAPPER_NAME": mapper,
    }


def resize_and_crop(size, crop, pad_to, longest_train, longest_test, test_time):
    """Sizes of a dataset whose nominal short edge is ``size``."""
    lowest, highest, step, longest = test_time
    return {
        "INPUT.MIN_SIZE_TRAIN": tuple(int(0.1 * k * size) for k in range(5, 21)),
        "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
        "INPUT.MAX_SIZE_TRAIN": longest_train,
        "INPUT.MIN_SIZE_TEST": size,
        "INPUT.MAX_SIZE_TEST": longest_test,
        "INPUT.CROP.ENABLED": True,
        "INPUT.CROP.TYPE": "absolute",
        "INPUT.CROP.SIZE": crop,
        "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 1.0,
        "INPUT.SIZE_DIVISIBILITY": pad_to,
        "INPUT.COLOR_AUG_SSD": True,
        "INPUT.RANDOM_FLIP": "horizontal",
        "TEST.AUG.ENABLED": False,
        "TEST.AUG.MIN_SIZES": tuple(range(lowest, highest + 1, step)),
        "TEST.AUG.MAX_SIZE": longest,
    }


# Published: semantic. Instance and panoptic are Mask2Former's (batch 16, rate 1e-4, 160,000
# iterations) with twice the batch and rate and half the iterations.
ADE20K = {
    **POLYNOMIAL,
    **schedule(batch=32, rate=2e-4, iterations=80_000),
    "MODEL.AFF.ALPHA": 4.0,
    "MODEL.AFF.SHEPARD_POWER": 6.0,
    "MODEL.AFF.SHEPARD_POWER_LEARNABLE": True,
}
ADE20K_512 = resize_and_crop(512, [512, 512], 512, 2048, 2048, (256, 896, 128, 3584))
ADE20K_640 = resize_and_crop(640, [640, 640], 640, 2560, 2560, (320, 1120, 160, 4480))

# Published: instance, which has four times the batch, twice the rate and a quarter of the
# iterations of Mask2Former's; panoptic (there batch 16, rate 1e-4, 368,750 iterations) likewise.
COCO = {
    **schedule(batch=64, rate=2e-4, iterations=92_188),
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER.WARMUP_ITERS": 3,
    "SOLVER.STEPS": (81_945, 88_773),
    "SOLVER.GAMMA": 0.1,
    "SOLVER.CHECKPOINT_PERIOD": 2500,
    "TEST.EVAL_PERIOD": 2500,
    "MODEL.AFF.ALPHA": 4.0,
    "MODEL.AFF.SHEPARD_POWER": 4.0,
    "MODEL.AFF.SHEPARD_POWER_LEARNABLE": False,
    "INPUT.IMAGE_SIZE": 1024,
    "INPUT.MIN_SCALE": 0.1,
    "INPUT.MAX_SCALE": 2.0,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "INPUT.COLOR_AUG_SSD": False,
    "INPUT.RANDOM_FLIP": "horizontal",
}
COCO_PANOPTIC = data(
    "coco_2017_train_panoptic", "coco_2017_val_panoptic_with_sem_seg", 133, "coco_panoptic_lsj"
)

# Published: instance and panoptic. Semantic is Mask2Former's, changed in the same way.
CITYSCAPES = {
    **POLYNOMIAL,
    **schedule(batch=32, rate=2e-4, iterations=45_000),
    **resize_and_crop(1024, [512, 1024], -1, 4096, 2048, (512, 1792, 256, 4096)),
    "MODEL.AFF.ALPHA": 8.0,
    "MODEL.AFF.SHEPARD_POWER": 6.0,
    "MODEL.AFF.SHEPARD_POWER_LEARNABLE": True,
}


def city(task, classes, mapper):
    return data(f"cityscapes_fine_{task}_train", f"cityscapes_fine_{task}_val", classes, mapper)


def ade(task, classes, mapper):
    return data(f"ade20k_{task}_train", f"ade20k_{task}_val", classes, mapper)


# What a task's recipe says, for every variant unless variant_of_task says otherwise.
RECIPES = {
    "ade20k/semantic": {
        **ADE20K,
        **ADE20K_512,
        **outputs("S"),
        **ade("sem_seg", 150, "mask_former_semantic"),
    },
    "ade20k/instance": {
        **ADE20K,
        **ADE20K_640,
        **outputs("I"),
        **ade("instance", 100, "mask_former_instance"),
    },
    "ade20k/panoptic": {
        **ADE20K,
        **ADE20K_640,
        **outputs("SIP"),
        **ade("panoptic", 150, "mask_former_panoptic"),
    },
    "coco/semantic": {**COCO, **outputs("S"), **COCO_PANOPTIC},
    "coco/instance": {
        **COCO,
        **outputs("I"),
        **data("coco_2017_train", "coco_2017_val", 80, "coco_instance_lsj"),
    },
    "coco/panoptic": {**COCO, **outputs("SIP"), **COCO_PANOPTIC},
    "cityscapes/semantic": {
        **CITYSCAPES,
        **outputs("S"),
        **city("sem_seg", 19, "mask_former_semantic"),
    },
    "cityscapes/instance": {
        **CITYSCAPES,
        **outputs("I"),
        **city("instance_seg", 8, "mask_former_instance"),
    },
    "cityscapes/panoptic": {
        **CITYSCAPES,
        **outputs("SIP"),
        **city("panoptic", 19, "mask_former_panoptic"),
    },
}


def variant_of_task(task, variant):
    """Queries, and the schedule of AFF-Base in Cityscapes, which is that of Mask2Former."""
    queries = 250 if variant == "base" else 100
    changes = {
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": queries,
        "TEST.DETECTIONS_PER_IMAGE": queries,
    }
    if variant == "base" and task.startswith("cityscapes"):
        changes |= schedule(batch=16, rate=1e-4, iterations=90_000)
    return changes


# dims, depths, heads, MLP ratio, layer scale, drop path, cluster size, neighbourhood.
SIZES = {
    "mini": ([32, 128, 256, 384], [2, 2, 6, 2], [2, 4, 8, 16], 2.0, 0.0, 0.0, 8, 48),
    "tiny": ([64, 128, 256, 512], [3, 4, 18, 5], [2, 4, 8, 16], 3.0, 0.0, 0.3, 8, 48),
    "small": ([96, 192, 384, 768], [3, 4, 18, 2], [3, 6, 12, 24], 3.0, 1e-5, 0.3, 8, 48),
    "base": ([128, 256, 512, 1024], [3, 4, 18, 2], [4, 8, 16, 32], 3.0, 1e-5, 0.3, 24, 144),
}


def expected(task, variant):
    """The published recipe: dotted key to value."""
    size = variant.removesuffix("_1_5th")
    dims, depths, heads, mlp_ratio, layer_scale, drop_path, cluster, nbhd = SIZES[size]
    return {
        **COMMON,
        "MODEL.AFF.EMBED_DIM": dims,
        "MODEL.AFF.DEPTHS": depths,
        "MODEL.AFF.NUM_HEADS": heads,
        "MODEL.AFF.MLP_RATIO": mlp_ratio,
        "MODEL.AFF.LAYER_SCALE": layer_scale,
        "MODEL.AFF.DROP_PATH_RATE": drop_path,
        "MODEL.AFF.CLUSTER_SIZE": cluster,
        "MODEL.AFF.NBHD_SIZE": [nbhd] * 4,
        "MODEL.AFF.DS_RATE": 0.25 if size == variant else 0.2,
        **RECIPES[task],
        **variant_of_task(task, variant),
        "TEST.BEST_METRIC": BEST_METRIC[task.split("/")[1]],
    }


# The same recipes with other backbones, for comparison; sizes as in Mask2Former.
BASELINES = {
    "r50": {
        "MODEL.BACKBONE.NAME": "build_resnet_backbone",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "MODEL.RESNETS.DEPTH": 50,
        "MODEL.RESNETS.NORM": "FrozenBN",
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RESNETS.RES5_DILATION": 1,
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    },
    "swin_tiny": {
        "MODEL.BACKBONE.NAME": "build_swin_backbone",
        "MODEL.SWIN.EMBED_DIM": 96,
        "MODEL.SWIN.DEPTHS": [2, 2, 6, 2],
        "MODEL.SWIN.NUM_HEADS": [3, 6, 12, 24],
        "MODEL.SWIN.WINDOW_SIZE": 7,
        "MODEL.SWIN.DROP_PATH_RATE": 0.3,
    },
}

# What configs/detectron2 changes in Detectron2's configs, and the schedules that they keep.
DETECTRON2 = {
    "MODEL.WEIGHTS": "",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.AFF.EMBED_DIM": [64, 128, 256, 512],
    "INPUT.FORMAT": "RGB",
    "INPUT.DATASET_MAPPER_NAME": "detectron2",
    "SOLVER.OPTIMIZER": "ADAMW",
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 1e-4,
    "SOLVER.WEIGHT_DECAY": 0.05,
    "SOLVER.BACKBONE_MULTIPLIER": 1.0,
}
ONCE, THRICE = (90_000, (60_000, 80_000)), (270_000, (210_000, 250_000))
# Architecture, backbone and its levels, schedule, dataset to test on.
MODELS = {
    "mask_rcnn_aff_tiny_fpn_3x": ("GeneralizedRCNN", "fpn", 2, THRICE, "val"),
    "cascade_mask_rcnn_aff_tiny_fpn_3x": ("GeneralizedRCNN", "fpn", 2, THRICE, "val"),
    "retinanet_aff_tiny_fpn_3x": ("RetinaNet", "retinanet_fpn", 3, THRICE, "val"),
    "panoptic_fpn_aff_tiny_3x": ("PanopticFPN", "fpn", 2, THRICE, "val_panoptic_separated"),
    "semantic_aff_tiny_fpn_1x": ("SemanticSegmentor", "fpn", 2, ONCE, "val_panoptic_stuffonly"),
}


def load(path):
    cfg = get_cfg()
    add_aff_config(cfg)
    cfg.merge_from_file(str(path), allow_unsafe=False)
    return cfg


def leaves(node, prefix=""):
    for name, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def lookup(cfg, key):
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("task", TASKS)
def test_config_is_the_published_recipe(task, variant):
    cfg = load(CONFIGS / task / f"aff_{variant}.yaml")
    recipe = expected(task, variant)
    assert {key: lookup(cfg, key) for key in recipe} == recipe


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("task", TASKS)
def test_baseline_is_the_same_recipe(task, baseline):
    cfg = load(CONFIGS / task / f"{baseline}.yaml")
    recipe = {
        **COMMON,
        **RECIPES[task],
        **variant_of_task(task, "tiny"),
        "TEST.BEST_METRIC": BEST_METRIC[task.split("/")[1]],
        **BASELINES[baseline],
    }
    assert {key: lookup(cfg, key) for key in recipe} == recipe


@pytest.mark.parametrize("name", MODELS)
def test_config_is_detectron2s_with_aff(name):
    cfg = load(CONFIGS / "detectron2" / f"{name}.yaml")
    architecture, pyramid, finest, (iterations, steps), split = MODELS[name]
    expected = {
        **DETECTRON2,
        "MODEL.META_ARCHITECTURE": architecture,
        "MODEL.BACKBONE.NAME": f"build_aff_{pyramid}_backbone",
        "MODEL.FPN.IN_FEATURES": [f"res{level}" for level in range(finest, 6)],
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.STEPS": steps,
        "DATASETS.TEST": (f"coco_2017_{split}",),
    }
    assert {key: lookup(cfg, key) for key in expected} == expected
    cascade = cfg.MODEL.ROI_HEADS.NAME == "CascadeROIHeads"
    assert cascade == name.startswith("cascade")


LEAVES = [
    *(path for model in ("aff_*", *BASELINES) for path in CONFIGS.glob(f"*/*/{model}.yaml")),
    *CONFIGS.glob("models/*_1_5th.yaml"),
    *CONFIGS.glob("detectron2/[a-z]*.yaml"),
]


@pytest.mark.parametrize(
    "path",
    LEAVES,
    ids=lambda path: path.relative_to(CONFIGS).as_posix(),
)
def test_leaf_holds_only_what_differs(path):
    own = yaml.safe_load(path.read_text())
    bases = own.pop("_BASE_")
    inherited = get_cfg()
    add_aff_config(inherited)
    for base in [bases] if isinstance(bases, str) else bases:
        place = base if "://" in base else str(path.parent / base)
        inherited.merge_from_file(place, allow_unsafe=False)
    for key, value in leaves(own):
        assert value != lookup(inherited, key), f"{key} repeats what {path} inherits"


def test_there_are_no_other_tasks_or_variants():
    found = {
        (path.parent.relative_to(CONFIGS).as_posix(), path.stem)
        for path in CONFIGS.glob("*/*/[a-z]*.yaml")
    }
    models = [*(f"aff_{variant}" for variant in VARIANTS), *BASELINES]
    assert found == {(task, model) for task in TASKS for model in models}
    assert {path.stem for path in CONFIGS.glob("models/*.yaml")} == set(models)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("quick/*.yaml")), ids=lambda path: path.stem)
def test_quick_config_is_a_small_model_on_a_real_dataset(path):
    quick = load(path)
    full = load(CONFIGS / "cityscapes" / "panoptic" / "aff_mini.yaml")
    assert quick.DATASETS == full.DATASETS
    assert quick.MODEL.MASK_FORMER.TEST == full.MODEL.MASK_FORMER.TEST
    assert quick.MODEL.SEM_SEG_HEAD.NUM_CLASSES == full.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    assert sum(quick.MODEL.AFF.EMBED_DIM) < sum(full.MODEL.AFF.EMBED_DIM)


@pytest.mark.parametrize("dataset", DATASETS)
def test_readme_goes_from_the_download_to_the_score(dataset):
    root = CONFIGS.parent
    commands = (root / "README.md").read_text().replace("\\\n", "").splitlines()
    prepare = f".venv/bin/python datasets/prepare_{dataset}.py"
    train, score = commands[commands.index(prepare) + 1 :][:2]
    config = re.search(rf"train_net.py --config-file (configs/{dataset}/\S+)", train)[1]
    assert (root / config).is_file() and (root / "datasets" / f"prepare_{dataset}.py").is_file()
    output = re.search(r"OUTPUT_DIR (\S+)", train)[1]
    assert config in score
    assert re.search(rf"--eval-only +MODEL.WEIGHTS {output}/model_final.pth$", score)
