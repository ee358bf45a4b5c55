"""For each of the nine tasks, a small AFF learns the handful of images that it is shown."""

import json

import pytest
from test_nine_tasks import DATASETS, SIZE, write_raw_and_prepare
from train_runs import ROOT, run

from aff_seg.setup_cfg import load_cfg

# The score by which a task is judged, and where results.json has it.
SCORES = {
    "semantic": ("sem_seg", ("mIoU", "IoU")),
    "instance": ("segm", ("AP",)),
    "panoptic": ("panoptic_seg", ("PQ",)),
}
SETTINGS = {
    "SEED": 0,
    "MODEL__AFF__EMBED_DIM": "(32, 48, 64, 96)",
    "MODEL__AFF__NUM_HEADS": "(2, 3, 4, 6)",
    "MODEL__SEM_SEG_HEAD__CONVS_DIM": 64,
    "MODEL__SEM_SEG_HEAD__MASK_DIM": 64,
    "MODEL__SEM_SEG_HEAD__DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD": 128,
    "MODEL__MASK_FORMER__HIDDEN_DIM": 64,
    "MODEL__MASK_FORMER__DIM_FEEDFORWARD": 128,
    "MODEL__MASK_FORMER__DEC_LAYERS": 4,
    "MODEL__MASK_FORMER__NUM_OBJECT_QUERIES": 30,
    "MODEL__MASK_FORMER__TRAIN_NUM_POINTS": 512,
    # The images as they are, again and again.
    "INPUT__MIN_SIZE_TRAIN": f"({SIZE[0]},)",
    "INPUT__MAX_SIZE_TRAIN": SIZE[1],
    "INPUT__MIN_SIZE_TEST": SIZE[0],
    "INPUT__MAX_SIZE_TEST": SIZE[1],
    "INPUT__CROP__ENABLED": False,
    "INPUT__RANDOM_FLIP": "none",
    "INPUT__COLOR_AUG_SSD": False,
    "INPUT__SIZE_DIVISIBILITY": -1,
    "INPUT__IMAGE_SIZE": SIZE[1],
    "INPUT__MIN_SCALE": 1.0,
    "INPUT__MAX_SCALE": 1.0,
    "SOLVER__IMS_PER_BATCH": 4,
    "SOLVER__BASE_LR": 1e-3,
    "SOLVER__BACKBONE_MULTIPLIER": 1.0,
    "SOLVER__WARMUP_ITERS": 20,
    "SOLVER__LR_SCHEDULER_NAME": "WarmupPolyLR",
    "SOLVER__MAX_ITER": 500,
    "SOLVER__CHECKPOINT_PERIOD": 1000,
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("nine")
    write_raw_and_prepare(root)
    return root


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("task", SCORES)
@pytest.mark.parametrize("dataset", DATASETS)
def test_a_handful_of_images_is_learned(dataset, task, shapes, tmp_path):
    config = ROOT / "configs" / dataset / task / "aff_mini.yaml"
    name = load_cfg(str(config)).DATASETS.TEST[0]
    code, _, err = run(
        *(shapes, tmp_path / "out", "--config-file", str(config)),
        **SETTINGS,
        DATASETS__TRAIN=f"('{name}',)",
        timeout=580,
    )
    assert code == 0, err
    kind, names = SCORES[task]
    found = json.loads((tmp_path / "out" / "results.json").read_text())[name][kind]
    print(f"{dataset}/{task}: {found}")
    assert next(found[metric] for metric in names if metric in found) > 60
