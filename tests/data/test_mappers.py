"""Training mappers: labels stay on their pixels, and bad files are named."""

import copy
import pickle
import random
import re

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.cityscapes_panoptic import load_cityscapes_panoptic
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image
from pycocotools import mask as mask_util

from aff_seg import add_aff_config
from aff_seg.data.mappers import MAPPERS, EvaluationMapper, build_train_mapper
from aff_seg.data.shapes import write_dataset
from aff_seg.errors import UserError

SIZE = (64, 96)


def make_cfg(task: str, **changes):
    """A config whose mapper changes nothing, but for ``changes`` under INPUT."""
    cfg = get_cfg()
    add_aff_config(cfg)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 19
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.DATASET_MAPPER_NAME = f"mask_former_{task}"
    cfg.INPUT.MIN_SIZE_TRAIN = (SIZE[0],)
    cfg.INPUT.RANDOM_FLIP = "none"
    for key, value in changes.items():
        cfg.merge_from_list([f"INPUT.{key.replace('__', '.')}", value])
    return cfg


def seed(value: int) -> None:
    random.seed(value)
    np.random.seed(value)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Panoptic records of a drawn Cityscapes, some with crowds."""
    root = tmp_path_factory.mktemp("mappers")
    write_dataset(layout="cityscapes", root=root, train=8, val=1, size=SIZE, seed=7, progress=False)
    top = root / "cityscapes"
    metadata = MetadataCatalog.get("cityscapes_fine_panoptic_train").as_dict()
    return load_cityscapes_panoptic(
        str(top / "leftImg8bit" / "train"),
        str(top / "gtFine" / "cityscapes_panoptic_train"),
        str(top / "gtFine" / "cityscapes_panoptic_train.json"),
        metadata,
    )


@pytest.fixture
def record(records):
    return copy.deepcopy(records[0])


@pytest.fixture
def colour_record(tmp_path):
    """A record whose picture is its own panoptic image, so that pixels tell their segment."""
    ids = np.zeros(SIZE, dtype=np.uint32)
    ids[:, :40] = 7001
    ids[10:50, 20:70] = 26000
    ids[30:, 60:] = 26001
    ids[:5, 80:] = 24
    path = tmp_path / "own.png"
    Image.fromarray(id2rgb(ids)).save(path)
    return {
        "file_name": str(path),
        "pan_seg_file_name": str(path),
        "segments_info": [
            {"id": 7001, "category_id": 0, "iscrowd": 0},
            {"id": 26000, "category_id": 13, "iscrowd": 0},
            {"id": 26001, "category_id": 13, "iscrowd": 0},
            {"id": 24, "category_id": 11, "iscrowd": 1},
        ],
    }


def picture_ids(mapped: dict) -> torch.Tensor:
    return torch.from_numpy(rgb2id(mapped["image"].permute(1, 2, 0).numpy()))


# Panoptic


def test_panoptic_gives_one_mask_for_each_segment_but_crowds(records):
    mapper = build_train_mapper(make_cfg("panoptic"))
    crowds = 0
    for record in records:
        before = copy.deepcopy(record)
        mapped = mapper(record)
        assert record == before
        ids = rgb2id(np.asarray(Image.open(record["pan_seg_file_name"])))
        kept = [s for s in record["segments_info"] if not s["iscrowd"]]
        crowds += len(record["segments_info"]) - len(kept)
        instances = mapped["instances"]
        assert instances.gt_classes.dtype == torch.int64
        assert instances.gt_masks.dtype == torch.bool
        assert instances.gt_classes.tolist() == [s["category_id"] for s in kept]
        expected = np.stack([ids == s["id"] for s in kept])
        np.testing.assert_array_equal(instances.gt_masks.numpy(), expected)
        image = np.asarray(Image.open(record["file_name"]))
        np.testing.assert_array_equal(mapped["image"].permute(1, 2, 0).numpy(), image)
        assert mapped["image"].dtype == torch.uint8
        assert (mapped["height"], mapped["width"]) == SIZE
        assert mapped["image_id"] == record["image_id"]
        assert not {"segments_info", "pan_seg_file_name"} & set(mapped)
    assert crowds > 0


def test_crop_and_flip_keep_masks_on_their_pixels(colour_record):
    mapper = build_train_mapper(
        make_cfg(
            "panoptic",
            CROP__ENABLED=True,
            CROP__TYPE="absolute",
            CROP__SIZE=(40, 48),
            RANDOM_FLIP="horizontal",
        )
    )
    seed(0)
    pictures = set()
    for _ in range(12):
        mapped = mapper(colour_record)
        ids = picture_ids(mapped)
        assert ids.shape == (40, 48)
        masks = mapped["instances"].gt_masks
        # Segments that are cropped away keep their place with an empty mask.
        assert mapped["instances"].gt_classes.tolist() == [0, 13, 13]
        for mask, segment in zip(masks, (7001, 26000, 26001), strict=True):
            assert torch.equal(mask, ids == segment)
        pictures.add(ids.numpy().tobytes())
    assert len(pictures) > 6


def test_resize_scales_image_and_masks_alike(colour_record):
    mapper = build_train_mapper(make_cfg("panoptic", MIN_SIZE_TRAIN=(2 * SIZE[0],)))
    instances = mapper(colour_record)["instances"]
    assert instances.image_size == (2 * SIZE[0], 2 * SIZE[1])
    square = np.zeros(instances.image_size, dtype=bool)
    square[20:100, 40:140] = True
    square[60:, 120:] = False
    np.testing.assert_array_equal(instances.gt_masks[1].numpy(), square)


def test_padding_is_right_and_below(colour_record):
    mapped = build_train_mapper(make_cfg("panoptic", SIZE_DIVISIBILITY=100))(colour_record)
    height, width = SIZE
    assert mapped["image"].shape == (3, 100, 100)
    assert (mapped["image"][:, height:] == 128).all()
    assert (mapped["image"][:, :, width:] == 128).all()
    masks = mapped["instances"].gt_masks
    assert masks.shape == (3, 100, 100)
    assert not masks[:, height:].any() and not masks[:, :, width:].any()
    assert torch.equal(masks[1, :height, :width], picture_ids(mapped)[:height, :width] == 26000)


def test_colour_augmentation_changes_the_picture_only(record):
    plain = build_train_mapper(make_cfg("panoptic"))(record)
    mapper = build_train_mapper(make_cfg("panoptic", COLOR_AUG_SSD=True))
    changed = 0
    for value in range(6):
        seed(value)
        mapped = mapper(record)
        changed += not torch.equal(mapped["image"], plain["image"])
        assert torch.equal(mapped["instances"].gt_masks, plain["instances"].gt_masks)
        seed(value)
        assert torch.equal(mapper(record)["image"], mapped["image"])
    assert changed >= 4


def test_crop_can_be_held_to_a_share_of_one_category(colour_record):
    cfg = make_cfg("panoptic", CROP__ENABLED=True, CROP__TYPE="absolute", CROP__SIZE=(32, 32))
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.9
    mapper = build_train_mapper(cfg)
    seed(0)
    for _ in range(10):
        masks = mapper(colour_record)["instances"].gt_masks
        road, cars = masks[0].sum(), masks[1:].sum()
        assert max(road, cars) < 0.9 * (road + cars)


def test_an_image_without_objects_gives_no_masks(tmp_path):
    path = tmp_path / "void.png"
    Image.new("RGB", SIZE[::-1]).save(path)
    record = {"file_name": str(path), "pan_seg_file_name": str(path), "segments_info": []}
    instances = build_train_mapper(make_cfg("panoptic"))(record)["instances"]
    assert instances.gt_masks.shape == (0, *SIZE)
    assert instances.gt_masks.dtype == torch.bool
    assert instances.gt_classes.shape == (0,)
    assert instances.gt_classes.dtype == torch.int64


# Semantic and instance


def test_semantic_gives_one_mask_for_each_class(records):
    mapper = build_train_mapper(make_cfg("semantic"))
    for record in records:
        instances = mapper(record)["instances"]
        truth = np.asarray(Image.open(record["sem_seg_file_name"]))
        classes = [c for c in np.unique(truth) if c != 255]
        assert instances.gt_classes.tolist() == classes
        for mask, number in zip(instances.gt_masks.numpy(), classes, strict=True):
            np.testing.assert_array_equal(mask, truth == number)


def test_semantic_ground_truth_that_is_all_ignored_gives_no_masks(record, tmp_path):
    path = tmp_path / "ignored.png"
    Image.new("L", SIZE[::-1], 255).save(path)
    record["sem_seg_file_name"] = str(path)
    instances = build_train_mapper(make_cfg("semantic"))(record)["instances"]
    assert instances.gt_masks.shape == (0, *SIZE)
    assert len(instances.gt_classes) == 0


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


@pytest.mark.parametrize("flip", ["none", "horizontal"])
def test_instance_reads_polygons_rle_and_arrays_alike(record, flip):
    mask = rectangle(10, 20, 50, 70)
    compressed = mask_util.encode(np.asfortranarray(mask))
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat))
    counts = np.diff(changes + 1, prepend=0, append=flat.size).tolist()
    forms = (
        [[20, 10, 70, 10, 70, 50, 20, 50]],
        compressed,
        {**compressed, "counts": compressed["counts"].decode()},
        {"size": list(SIZE), "counts": counts},
        mask.astype(bool),
    )
    record["annotations"] = [
        {"category_id": number, "segmentation": form, "iscrowd": 0}
        for number, form in enumerate(forms)
    ]
    record["annotations"].append({"category_id": 9, "segmentation": compressed, "iscrowd": 1})
    mapper = build_train_mapper(make_cfg("instance", RANDOM_FLIP=flip))
    for value in range(4):
        seed(value)
        instances = mapper(record)["instances"]
        assert instances.gt_classes.tolist() == [0, 1, 2, 3, 4]
        expected = {"none": [mask], "horizontal": [mask, mask[:, ::-1]]}[flip]
        first = instances.gt_masks[0].numpy()
        assert any((first == option).all() for option in expected)
        assert (instances.gt_masks == instances.gt_masks[0]).all()


def test_instance_keeps_objects_that_are_cropped_away(record):
    record["annotations"] = [
        {"category_id": 2, "segmentation": [[0, 0, 3, 0, 3, 3, 0, 3]]},
        {"category_id": 3, "segmentation": [[0, 0, 96, 0, 96, 64, 0, 64]]},
    ]
    cfg = make_cfg("instance", CROP__ENABLED=True, CROP__TYPE="absolute", CROP__SIZE=(16, 16))
    seed(1)
    instances = build_train_mapper(cfg)(record)["instances"]
    assert instances.gt_classes.tolist() == [2, 3]
    assert not instances.gt_masks[0].any()
    assert instances.gt_masks[1].all()


def test_instance_takes_an_image_without_annotations(record):
    record["annotations"] = []
    instances = build_train_mapper(make_cfg("instance"))(record)["instances"]
    assert instances.gt_masks.shape == (0, *SIZE)
    assert instances.gt_classes.dtype == torch.int64


# Bad input


def fail(task: str, record: dict) -> str:
    with pytest.raises(UserError) as caught:
        build_train_mapper(make_cfg(task))(record)
    assert "\n" not in str(caught.value)
    # Workers of a data loader send their errors to the main process.
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    return str(caught.value)


def test_unknown_mapper_lists_the_known_ones():
    with pytest.raises(UserError, match="'mask_former_pan'.*mask_former_panoptic"):
        build_train_mapper(make_cfg("pan"))
    assert set(MAPPERS) >= {"mask_former_panoptic"}


def test_what_the_mapper_of_detectron2_is_not_for_is_told():
    cfg = make_cfg("panoptic")
    cfg.INPUT.DATASET_MAPPER_NAME = "detectron2"
    cfg.MODEL.META_ARCHITECTURE = "MaskFormer"
    with pytest.raises(UserError, match="detectron2, which is not for MaskFormer; it takes mask_f"):
        build_train_mapper(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.LOAD_PROPOSALS = "GeneralizedRCNN", True
    with pytest.raises(UserError, match="LOAD_PROPOSALS is True, but files of proposals are not"):
        build_train_mapper(cfg)


@pytest.mark.parametrize("key", ["file_name", "pan_seg_file_name"])
def test_a_missing_file_is_named(record, key):
    record[key] = record[key].replace("aachen_", "lost_")
    assert f"{record[key]} is missing" in fail("panoptic", record)


@pytest.mark.parametrize("key", ["file_name", "pan_seg_file_name"])
@pytest.mark.parametrize("content", ["no image at all", "truncated"])
def test_an_unreadable_file_is_named(record, key, content, tmp_path):
    path = tmp_path / "broken.png"
    whole = open(record[key], "rb").read()
    path.write_bytes(whole[: len(whole) // 2] if content == "truncated" else content.encode())
    record[key] = str(path)
    assert f"{path} cannot be read as an image" in fail("panoptic", record)


def test_labels_of_another_size_are_named(record, tmp_path):
    path = tmp_path / "small.png"
    Image.new("RGB", (10, 20)).save(path)
    record["pan_seg_file_name"] = str(path)
    assert f"{path} is 10 x 20 pixels, but its image is 96 x 64" in fail("panoptic", record)


def test_an_image_of_another_size_than_its_record_is_named(record):
    record.update(height=70, width=96)
    assert record["file_name"] in fail("panoptic", record)


def test_a_segment_that_is_not_listed_is_named(record):
    lost = record["segments_info"].pop()
    told = fail("panoptic", record)
    assert record["pan_seg_file_name"] in told and str(lost["id"]) in told


def test_a_class_out_of_range_is_named(record):
    record["segments_info"][0]["category_id"] = 19
    told = fail("panoptic", record)
    assert f"{record['pan_seg_file_name']} holds class 19, but the model has 19" in told


def test_a_class_out_of_range_in_a_label_image_is_named(record, tmp_path):
    path = tmp_path / "labels.png"
    Image.new("L", SIZE[::-1], 200).save(path)
    record["sem_seg_file_name"] = str(path)
    assert f"{path} holds class 200" in fail("semantic", record)


def test_a_coloured_label_image_is_named(record):
    record["sem_seg_file_name"] = record["pan_seg_file_name"]
    assert "has 3 channels" in fail("semantic", record)


def test_a_record_of_another_task_is_refused(record):
    assert "has no annotations" in fail("instance", record)


def test_an_annotation_without_a_mask_is_named(record):
    record["annotations"] = [{"category_id": 1}]
    assert record["file_name"] in fail("instance", record)
    record["annotations"] = [{"category_id": 1, "segmentation": np.ones((4, 4))}]
    assert "is 4 x 4 pixels, but the image is 96 x 64" in fail("instance", record)


def test_evaluation_names_a_picture_that_cannot_be_read(tmp_path, load_config):
    path = tmp_path / "broken.png"
    path.write_bytes(b"no picture")
    mapper = EvaluationMapper(load_config("cityscapes/panoptic/aff_mini"), is_train=False)
    with pytest.raises(UserError, match=r"broken\.png cannot be read"):
        mapper({"file_name": str(path)})


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_a_picture_of_more_than_8_bits_is_named(kind, record, tmp_path, load_config):
    path = tmp_path / "deep.tif"
    Image.fromarray(np.full(SIZE, 300, dtype=kind)).save(path)
    message = rf"{path} cannot be read.* pixels of more than 8 bits"
    evaluate = EvaluationMapper(load_config("cityscapes/panoptic/aff_mini"), is_train=False)
    with pytest.raises(UserError, match=message):
        evaluate({"file_name": str(path)})
    assert re.match(message, fail("panoptic", {**record, "file_name": str(path)}))


# Large-scale jitter


def jitter(task, scale=1.0, side=None, **changes):
    cfg = make_cfg(task, **changes)
    cfg.INPUT.DATASET_MAPPER_NAME = f"coco_{task}_lsj"
    cfg.INPUT.IMAGE_SIZE = side or SIZE[1]
    cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE = np.broadcast_to(scale, 2).tolist()
    return build_train_mapper(cfg)


def test_jitter_scales_into_the_square_and_pads_right_and_below(colour_record):
    mapped = jitter("panoptic", 1.0)(colour_record)
    height, width = SIZE
    assert mapped["image"].shape == (3, width, width)
    assert (mapped["image"][:, height:] == 128).all()
    masks = mapped["instances"].gt_masks
    assert masks.shape == (3, width, width) and not masks[:, height:].any()
    ids = picture_ids(mapped)[:height]
    for mask, segment in zip(masks, (7001, 26000, 26001), strict=True):
        assert torch.equal(mask[:height], ids == segment)


def test_jitter_shrinks_or_crops(colour_record):
    small = jitter("panoptic", 0.25)(colour_record)["instances"]
    assert small.gt_masks.shape == (3, 96, 96)
    assert not small.gt_masks[:, 16:].any() and not small.gt_masks[:, :, 24:].any()
    # 26000 covers rows 10 to 50 and columns 20 to 70, of which 26001 hides a corner.
    area = (colour_record_ids() == 26000).sum() / 16
    assert abs(small.gt_masks[1].sum() - area) < 15
    mapper = jitter("panoptic", 2.0, RANDOM_FLIP="horizontal")
    pictures = set()
    for value in range(8):
        seed(value)
        mapped = mapper(colour_record)
        assert mapped["image"].shape == (3, 96, 96)
        assert mapped["instances"].gt_classes.tolist() == [0, 13, 13]
        pictures.add(mapped["instances"].gt_masks.numpy().tobytes())
    assert len(pictures) == 8


def colour_record_ids():
    ids = np.zeros(SIZE, dtype=np.uint32)
    ids[10:50, 20:70] = 26000
    ids[30:, 60:] = 26001
    return ids


def test_jitter_leaves_out_instances_that_are_cropped_away(record):
    box = [[0, 0, 96, 0, 96, 64, 0, 64]]
    corners = [[[0, 0, 4, 0, 4, 4, 0, 4]], [[92, 60, 96, 60, 96, 64, 92, 64]]]
    record["annotations"] = [
        {"category_id": i, "segmentation": s} for i, s in enumerate([*corners, box])
    ]
    record["annotations"] += [
        {"category_id": 3, "segmentation": mask_util.encode(np.asfortranarray(mask)), "iscrowd": c}
        for mask, c in ((rectangle(0, 0, 4, 4), 0), (rectangle(0, 0, 64, 96), 1))
    ]
    counts = set()
    for value in range(20):
        seed(value)
        instances = jitter("instance", 2.0)(copy.deepcopy(record))["instances"]
        assert instances.gt_masks.flatten(1).any(1).all()
        assert 2 in instances.gt_classes.tolist()
        counts.add(tuple(instances.gt_classes.tolist()))
    assert {(0, 2, 3), (1, 2), (2,)} >= counts and len(counts) > 1


def test_jitter_takes_images_without_objects(record):
    crowd = {"category_id": 1, "segmentation": [[0, 0, 5, 0, 5, 5]], "iscrowd": 1}
    for annotations in ([], [crowd]):
        record["annotations"] = annotations
        instances = jitter("instance", (0.1, 2.0))(record)["instances"]
        assert instances.gt_masks.shape == (0, 96, 96)


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (1, 1)])
def test_the_thinnest_images_load(size, tmp_path):
    path = tmp_path / "thin.png"
    Image.new("RGB", size).save(path)
    record = {"file_name": str(path), "annotations": []}
    image = jitter("instance", 0.1)(record)["image"]
    assert image.shape == (3, 96, 96)
    cfg = make_cfg("instance", MAX_SIZE_TRAIN=100)
    assert min(build_train_mapper(cfg)(record)["image"].shape) >= 1


@pytest.mark.parametrize("by_category", [False, True])
@pytest.mark.parametrize("name", MAPPERS)
def test_files_are_decoded_and_objects_drawn_once(
    name, by_category, colour_record, tmp_path, monkeypatch
):
    semantic = tmp_path / "labels.png"
    Image.fromarray((colour_record_ids() > 0).astype(np.uint8)).save(semantic)
    picture = tmp_path / "picture.png"
    Image.new("RGB", SIZE[::-1]).save(picture)
    rle = mask_util.encode(np.asfortranarray(rectangle(10, 20, 50, 70)))
    objects = [
        ([[20, 10, 70, 10, 70, 50, 20, 50]], 0),
        ([[0, 0, 9, 0, 9, 9], [20, 20, 29, 20, 29, 29]], 0),
        (rle, 0),
        (rle, 1),
    ]
    annotations = [{"category_id": 1, "segmentation": s, "iscrowd": c} for s, c in objects]
    panoptic = colour_record["pan_seg_file_name"]
    record = {
        **colour_record,
        "file_name": str(picture),
        "sem_seg_file_name": str(semantic),
        "annotations": annotations,
    }
    cfg = make_cfg("semantic", CROP__ENABLED=True, CROP__TYPE="absolute", CROP__SIZE=(32, 32))
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.9 if by_category else 1.0
    cfg.INPUT.DATASET_MAPPER_NAME, cfg.INPUT.IMAGE_SIZE = name, 64
    mapper = build_train_mapper(cfg)
    opened, calls = [], []

    def counting(function, note):
        def call(first, *rest):
            note(first)
            return function(first, *rest)

        return call

    monkeypatch.setattr(Image, "open", counting(Image.open, lambda file: opened.append(file.name)))
    for function in ("frPyObjects", "decode"):
        counted = counting(
            getattr(mask_util, function), lambda _, name=function: calls.append(name)
        )
        monkeypatch.setattr(mask_util, function, counted)
    seed(0)
    assert len(mapper(record)["instances"]) > 0
    if "instance" in name:
        assert opened == [str(picture)]
        # Two objects of polygons and one of RLE; not the crowd.
        assert sorted(calls) == ["decode"] * 3 + ["frPyObjects"] * 2
    else:
        assert opened == [str(picture), str(semantic) if "semantic" in name else panoptic]
        assert calls == []


def test_polygons_of_two_points_are_left_out(record):
    record["annotations"] = [
        {"category_id": 2, "segmentation": [[0, 0, 3, 3], [0, 0, 96, 0, 96, 64, 0, 64]]},
        {"category_id": 3, "segmentation": [[0, 0, 3, 3]]},
    ]
    instances = build_train_mapper(make_cfg("instance"))(record)["instances"]
    assert instances.gt_masks.flatten(1).sum(1).tolist() == [64 * 96, 0]


def test_bilevel_and_deep_label_images_load(record, tmp_path):
    path = tmp_path / "labels.png"
    record["sem_seg_file_name"] = str(path)
    halves = np.zeros(SIZE, dtype=bool)
    halves[:, 48:] = True
    mapper = build_train_mapper(make_cfg("semantic", MIN_SIZE_TRAIN=(150,)))
    Image.fromarray(halves).save(path)
    narrow = mapper(record)["instances"]
    assert narrow.gt_classes.tolist() == [0, 1]
    Image.fromarray(halves.astype(np.uint16)).save(path)
    assert torch.equal(mapper(record)["instances"].gt_masks, narrow.gt_masks)
    Image.fromarray(halves.astype(np.float32)).save(tmp_path / "labels.tif")
    record["sem_seg_file_name"] = str(tmp_path / "labels.tif")
    assert "float32 values; labels are whole numbers" in fail("semantic", record)
    for value in (-1, 65536):
        Image.fromarray(np.full(SIZE, value, dtype=np.int32)).save(tmp_path / "labels.tif")
        assert f"labels.tif holds the value {value}" in fail("semantic", record)


@pytest.mark.parametrize(
    "segmentation",
    [
        [["a", 0, 5, 0, 5, 5]],
        [[0, 0, 5, 0, 5]],
        {"size": list(SIZE), "counts": "@@"},
        {"size": [1]},
    ],
)
def test_a_mask_that_cannot_be_read_is_named(segmentation, record):
    record["annotations"] = [{"category_id": 2, "segmentation": segmentation}]
    told = fail("instance", record)
    assert f"A mask of {record['file_name']} is no polygons and no RLE" in told
