"""AFF in Detectron2's models, and other backbones under our head, train and are scored."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.modeling import build_model
from train_runs import run

from aff_seg.data.shapes import write_dataset

REPO = Path(__file__).parents[1]
# Tasks of the results of each config.
CONFIGS = {
    "detectron2/mask_rcnn_aff_tiny_fpn_3x": {"bbox", "segm"},
    "detectron2/cascade_mask_rcnn_aff_tiny_fpn_3x": {"bbox", "segm"},
    "detectron2/retinanet_aff_tiny_fpn_3x": {"bbox"},
    "detectron2/panoptic_fpn_aff_tiny_3x": {"panoptic_seg", "bbox", "segm", "sem_seg"},
    "detectron2/semantic_aff_tiny_fpn_1x": {"sem_seg"},
    "coco/panoptic/r50": {"panoptic_seg", "bbox", "segm", "sem_seg"},
    "coco/panoptic/swin_tiny": {"panoptic_seg", "bbox", "segm", "sem_seg"},
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    write_dataset(layout="coco", root=root, train=4, val=2, size=(64, 96), progress=False)
    return root


@pytest.fixture(scope="module")
def results(shapes, tmp_path_factory):
    """All of them in one process."""
    output = tmp_path_factory.mktemp("other") / "out"
    variables = {
        "DETECTRON2_DATASETS": str(shapes),
        "PYTHONPATH": str(REPO),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "tests/other_models.py", str(output), *CONFIGS],
        capture_output=True,
        text=True,
        cwd=REPO,
        env={**os.environ, **variables},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("SCORES ")]
    return output, dict(json.loads(line.removeprefix("SCORES ")) for line in lines)


@pytest.mark.parametrize("config", CONFIGS)
def test_two_steps_and_scores(config, results):
    output, scores = results
    ((tasks),) = scores[config].values()
    assert set(tasks) == CONFIGS[config]
    assert all(name == "panoptic_seg" or "AP" in of or "mIoU" in of for name, of in tasks.items())
    assert (output / config / "model_final.pth").is_file()
    rows = [json.loads(row) for row in (output / config / "metrics.json").open()]
    assert sum("total_loss" in row for row in rows) == 2


@pytest.mark.slow
def test_two_processes_train_a_pyramid(shapes, tmp_path):
    # Whose finest level nobody reads.
    code, out, err = run(
        *(shapes, tmp_path / "out", "--num-gpus", "2", "--dist-url", "auto"),
        *("--config-file", str(REPO / "configs/detectron2/retinanet_aff_tiny_fpn_3x.yaml")),
        MODEL__FPN__OUT_CHANNELS=16,
        SOLVER__MAX_ITER=2,
    )
    assert code == 0, err
    assert "iter 2/2" in out
    assert out.splitlines()[-3].split() == ["dataset", "AP_box", "AP50_box"]


SIZE = (96, 128)
LEARNER = {
    "SEED": 0,
    "MODEL__AFF__EMBED_DIM": "(32, 48, 64, 96)",
    "MODEL__AFF__DEPTHS": "(1, 1, 2, 1)",
    "MODEL__AFF__NUM_HEADS": "(2, 3, 4, 6)",
    "MODEL__AFF__DROP_PATH_RATE": 0.0,
    "MODEL__FPN__OUT_CHANNELS": 64,
    "MODEL__ANCHOR_GENERATOR__SIZES": "[[8], [16], [32], [64], [128]]",
    "MODEL__RPN__CONV_DIMS": "[64]",
    "MODEL__RPN__POST_NMS_TOPK_TRAIN": 200,
    "MODEL__RPN__POST_NMS_TOPK_TEST": 200,
    "MODEL__ROI_HEADS__BATCH_SIZE_PER_IMAGE": 64,
    "MODEL__ROI_BOX_HEAD__FC_DIM": 256,
    "MODEL__ROI_MASK_HEAD__CONV_DIM": 32,
    "MODEL__ROI_MASK_HEAD__NUM_CONV": 2,
    "INPUT__MIN_SIZE_TRAIN": f"({SIZE[0]},)",
    "INPUT__MAX_SIZE_TRAIN": SIZE[1],
    "INPUT__MIN_SIZE_TEST": SIZE[0],
    "INPUT__MAX_SIZE_TEST": SIZE[1],
    "INPUT__RANDOM_FLIP": "none",
    "SOLVER__IMS_PER_BATCH": 4,
    "SOLVER__BASE_LR": 1e-3,
    "SOLVER__WARMUP_ITERS": 20,
    "SOLVER__WARMUP_FACTOR": 0.05,
    "SOLVER__STEPS": "(240,)",
    "SOLVER__MAX_ITER": 300,
    "SOLVER__CHECKPOINT_PERIOD": 1000,
}
# Dataset, what else differs, and least scores. Each learns the images that it is scored on.
LEARNERS = {
    "panoptic_fpn_aff_tiny_3x": (
        "coco_2017_val_panoptic_separated",
        {
            "MODEL__SEM_SEG_HEAD__CONVS_DIM": 64,
            "MODEL__PANOPTIC_FPN__COMBINE__STUFF_AREA_LIMIT": 64,
            "SOLVER__STEPS": "(190,)",
            "SOLVER__MAX_ITER": 240,
        },
        {"panoptic_seg/PQ": 70, "bbox/AP": 50, "segm/AP": 50, "sem_seg/mIoU": 80},
    ),
    "retinanet_aff_tiny_fpn_3x": (
        "coco_2017_val",
        {"MODEL__ANCHOR_GENERATOR__SIZES": "[[16], [32], [64], [128], [256]]"},
        {"bbox/AP": 50},
    ),
}


def scores_of(folder, dataset, names):
    """The scores that a training has left, by task/metric."""
    found = json.loads((folder / "results.json").read_text())[dataset]
    scores = {name: found[name.split("/")[0]][name.split("/")[1]] for name in names}
    print(scores)
    return scores


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", LEARNERS)
def test_detectors_learn(name, tmp_path):
    dataset, changes, least = LEARNERS[name]
    write_dataset(layout="coco", root=tmp_path, train=1, val=4, size=SIZE, progress=False)
    config = str(REPO / "configs" / "detectron2" / f"{name}.yaml")
    settings = {**LEARNER, **changes, "DATASETS__TRAIN": f"('{dataset}',)"}
    code, _, err = run(tmp_path, tmp_path / "out", "--config-file", config, **settings, timeout=580)
    assert code == 0, err
    scores = scores_of(tmp_path / "out", dataset, least)
    assert all(scores[name] > least[name] for name in least)


BASELINE = {
    "SEED": 0,
    "MODEL__SWIN__EMBED_DIM": 32,
    "MODEL__SWIN__DEPTHS": "(1, 1, 2, 1)",
    "MODEL__SWIN__NUM_HEADS": "(1, 2, 4, 8)",
    "MODEL__SWIN__DROP_PATH_RATE": 0.0,
    "MODEL__RESNETS__NORM": "BN",
    "MODEL__RESNETS__STEM_OUT_CHANNELS": 16,
    "MODEL__RESNETS__RES2_OUT_CHANNELS": 32,
    "MODEL__RESNETS__WIDTH_PER_GROUP": 16,
    "MODEL__SEM_SEG_HEAD__CONVS_DIM": 64,
    "MODEL__SEM_SEG_HEAD__MASK_DIM": 64,
    "MODEL__SEM_SEG_HEAD__TRANSFORMER_ENC_LAYERS": 2,
    "MODEL__MASK_FORMER__HIDDEN_DIM": 64,
    "MODEL__MASK_FORMER__DIM_FEEDFORWARD": 128,
    "MODEL__MASK_FORMER__DEC_LAYERS": 4,
    "MODEL__MASK_FORMER__NUM_OBJECT_QUERIES": 20,
    "MODEL__MASK_FORMER__TRAIN_NUM_POINTS": 1024,
    "MODEL__MASK_FORMER__TEST__OBJECT_MASK_THRESHOLD": 0.3,
    "INPUT__IMAGE_SIZE": SIZE[1],
    "INPUT__MIN_SCALE": 1.0,
    "INPUT__MAX_SCALE": 1.0,
    "INPUT__RANDOM_FLIP": "none",
    "INPUT__MIN_SIZE_TEST": SIZE[0],
    "INPUT__MAX_SIZE_TEST": SIZE[1],
    "SOLVER__IMS_PER_BATCH": 4,
    "SOLVER__BASE_LR": 1e-3,
    "SOLVER__BACKBONE_MULTIPLIER": 1.0,
    "SOLVER__STEPS": "(240,)",
    "SOLVER__MAX_ITER": 300,
    "SOLVER__CHECKPOINT_PERIOD": 1000,
    "SOLVER__CLIP_GRADIENTS__CLIP_VALUE": 1.0,
    "DATASETS__TRAIN": "('coco_2017_val_panoptic_with_sem_seg',)",
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["r50", "swin_tiny"])
def test_our_head_learns_on_cells_of_grids(name, tmp_path):
    write_dataset(layout="coco", root=tmp_path, train=1, val=4, size=SIZE, progress=False)
    config = str(REPO / "configs" / "coco" / "panoptic" / f"{name}.yaml")
    code, _, err = run(tmp_path, tmp_path / "out", "--config-file", config, **BASELINE, timeout=580)
    assert code == 0, err
    names = ("panoptic_seg/PQ", "sem_seg/mIoU")
    scores = scores_of(tmp_path / "out", "coco_2017_val_panoptic_with_sem_seg", names)
    assert min(scores.values()) > 60


# Parameters of the backbone and in all; Mask2Former with its head for grids has 44 and 47 million.
SIZES = {"r50": (23_454_912, 43_645_169), "swin_tiny": (27_520_698, 47_096_555)}


@pytest.mark.parametrize("model", SIZES)
def test_sizes_of_the_baselines(model, load_config):
    built = build_model(load_config(f"coco/instance/{model}"))
    counts = (sum(p.numel() for p in part.parameters()) for part in (built.backbone, built))
    assert tuple(counts) == SIZES[model]
