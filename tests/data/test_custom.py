"""Datasets of the user's own: classes, evaluators and checks follow from the config."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BitMasks, Instances
from PIL import Image
from small_sets import CATEGORIES, SCENES, SIZE, entry_of, segment_ids, write_small_sets

from aff_seg import add_aff_config
from aff_seg.data import build_train_mapper, check_datasets, register_custom
from aff_seg.engine.trainer import Trainer
from aff_seg.errors import UserError
from aff_seg.evaluation import build_evaluator, check_evaluators, summarize
from aff_seg.setup_cfg import load_cfg

KINDS = ("coco", "coco_panoptic", "semantic")
NAMES = {"coco": ["cat", "dog"], "coco_panoptic": ["grass", "cat", "sky", "dog"]}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    write_small_sets(folder)
    return folder


def make_cfg(*entries, train=("small",), test=(), **opts):
    cfg = get_cfg()
    add_aff_config(cfg)
    cfg.DATASETS.CUSTOM = list(entries)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = train, test
    return cfg


def registered(*entries, **kwargs):
    cfg = make_cfg(*entries, **kwargs)
    register_custom(cfg)
    return cfg


def told(*entries, **kwargs):
    with pytest.raises(UserError) as caught:
        registered(*entries, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def name_of(record):
    path = Path(record["file_name"])
    return path.parent.name if path.stem == "picture" else path.stem


# Registration


@pytest.mark.parametrize("kind", KINDS)
def test_classes_and_evaluator_are_derived(kind, root):
    cfg = registered(entry_of(kind, root))
    metadata = MetadataCatalog.get("small")
    if kind == "coco":
        assert metadata.thing_classes == ["cat", "dog"]
        assert metadata.thing_dataset_id_to_contiguous_id == {7: 0, 21: 1}
        assert metadata.evaluator_type == "coco"
        assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 2
    elif kind == "coco_panoptic":
        assert metadata.stuff_classes == ["grass", "cat", "sky", "dog"]
        assert metadata.thing_classes == ["cat", "dog"]
        assert metadata.thing_colors == [[200, 0, 0], [90, 90, 0]]
        assert metadata.thing_dataset_id_to_contiguous_id == {7: 1, 21: 3}
        assert metadata.stuff_dataset_id_to_contiguous_id == {3: 0, 7: 1, 20: 2, 21: 3}
        assert metadata.evaluator_type == "coco_panoptic_seg"
        assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 4
    else:
        assert metadata.stuff_classes == ["class 0", "class 1", "class 2", "class 3"]
        assert metadata.evaluator_type == "sem_seg"
        assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 4
    check_datasets(cfg)


# Mappers of a kind, and the number of masks they give of the images first, crowded and empty.
MASKS = {
    "mask_former_instance": ("coco", [2, 1, 0]),
    "coco_instance_lsj": ("coco", [2, 1, 0]),
    "mask_former_panoptic": ("coco_panoptic", [4, 2, 1]),
    "coco_panoptic_lsj": ("coco_panoptic", [4, 2, 1]),
    "mask_former_semantic": ("semantic", [4, 2, 1]),
}


@pytest.mark.parametrize("mapper", MASKS)
def test_records_have_what_the_mappers_read(mapper, root):
    kind, expected = MASKS[mapper]
    cfg = registered(entry_of(kind, root))
    cfg.INPUT.DATASET_MAPPER_NAME = mapper
    cfg.INPUT.MIN_SIZE_TRAIN = (SIZE[0],)
    cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE = 64, 1.0, 1.0
    mapper = build_train_mapper(cfg)
    records = {name_of(record): record for record in DatasetCatalog.get("small")}
    assert [len(mapper(records[name])["instances"]) for name in SCENES] == expected


def detectron2_cfg(architecture, entry):
    cfg = make_cfg(entry)
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.INPUT.DATASET_MAPPER_NAME = "detectron2"
    cfg.INPUT.MIN_SIZE_TRAIN = (SIZE[0],)
    register_custom(cfg)
    return cfg


def with_boxes(root, tmp_path, **changes):
    """An entry whose annotations have boxes, and what else ``changes`` give."""
    content = json.loads((root / "instances.json").read_text())
    for annotation in content["annotations"]:
        annotation.update(bbox=[1, 2, 8, 9], **changes)
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(content))
    return entry_of("coco", root, ANNOTATIONS=str(path))


@pytest.mark.parametrize(
    ("architecture", "part"),
    [("GeneralizedRCNN", "ROI_HEADS"), ("RetinaNet", "RETINANET")],
)
def test_detectors_of_detectron2_take_boxes_and_masks(architecture, part, root, tmp_path):
    cfg = detectron2_cfg(architecture, with_boxes(root, tmp_path))
    assert cfg.MODEL[part].NUM_CLASSES == 2
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == get_cfg().MODEL.SEM_SEG_HEAD.NUM_CLASSES
    check_datasets(cfg)
    records = {name_of(record): record for record in DatasetCatalog.get("small")}
    for masks in (False, True):
        cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT = masks, "bitmask"
        mapper = build_train_mapper(cfg)
        found = {name: mapper(record)["instances"] for name, record in records.items()}
        assert [len(found[name]) for name in SCENES] == [2, 1, 0]
        assert found["first"].has("gt_masks") == masks
        assert found["first"].gt_boxes.tensor[0].tolist()[1::2] == [2, 11]


def test_semantic_segmentor_of_detectron2_takes_label_images(root):
    cfg = detectron2_cfg("SemanticSegmentor", entry_of("semantic", root))
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 4
    check_datasets(cfg)
    given = build_train_mapper(cfg)(DatasetCatalog.get("small")[0])
    assert given["sem_seg"].shape == given["image"].shape[1:] == SIZE


def test_what_detectron2s_models_cannot_be_trained_on_is_told(root, tmp_path):
    for architecture, kind in (
        ("GeneralizedRCNN", "coco_panoptic"),
        ("RetinaNet", "semantic"),
        ("SemanticSegmentor", "coco"),
        ("PanopticFPN", "coco_panoptic"),
    ):
        sentence = f"has KIND {kind}, which is not for MODEL.META_ARCHITECTURE {architecture};"
        with pytest.raises(UserError, match=sentence):
            detectron2_cfg(architecture, entry_of(kind, root))

    def told_by_mapper(entry, architecture="GeneralizedRCNN", masks=True):
        cfg = detectron2_cfg(architecture, entry)
        cfg.MODEL.MASK_ON = masks
        records = {name_of(record): record for record in DatasetCatalog.get("small")}
        with pytest.raises(UserError) as caught:
            build_train_mapper(cfg)(records["first"])
        return str(caught.value)

    assert "an object without bbox; add it" in told_by_mapper(entry_of("coco", root))
    boxed = with_boxes(root, tmp_path)
    assert "no polygon; set INPUT.MASK_FORMAT bitmask." in told_by_mapper(boxed)
    bare = with_boxes(root, tmp_path, segmentation=None)
    assert "without segmentation; add it, or set MODEL.MASK_ON False." in told_by_mapper(bare)
    check_datasets(detectron2_cfg("RetinaNet", bare))
    registered(bare)
    with pytest.raises(UserError, match="annotation 1 has no segmentation; give it polygons"):
        DatasetCatalog.get("small")
    cfg = detectron2_cfg("GeneralizedRCNN", boxed)
    cfg.MODEL.MASK_ON = False
    mapper = build_train_mapper(cfg)
    record = {**DatasetCatalog.get("small")[0], "file_name": "/nowhere.jpg"}
    with pytest.raises(UserError, match=r"^/nowhere.jpg cannot be used \("):
        mapper(record)
    del record["annotations"]
    with pytest.raises(UserError, match="The record of /nowhere.jpg has no annotations, which"):
        mapper(record)


def test_names_and_colours_can_be_given(root):
    colours = [[1, 2, 3], [4, 5, 6]]
    registered(entry_of("coco", root, CLASSES=["Cat", "Dog"], COLORS=colours))
    metadata = MetadataCatalog.get("small")
    assert metadata.thing_classes == ["Cat", "Dog"]
    assert metadata.thing_colors == colours
    registered(entry_of("semantic", root, CLASSES=["a", "b", "c", "d", "e"]))
    assert MetadataCatalog.get("small").stuff_classes == ["a", "b", "c", "d", "e"]


def test_paths_may_begin_at_the_home_folder(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root))
    for kind in KINDS:
        entry = entry_of(kind, Path("~"))
        entry |= {"SEGMENTS": "~/panoptic"} if kind == "coco_panoptic" else {}
        check_datasets(registered(entry))


def test_a_colour_in_another_form_is_left_out(root):
    classes = [{"id": i, "name": name, "color": "#ff0000"} for i, name in ((7, "cat"), (21, "dog"))]
    registered(entry_of("coco", root, CLASSES=classes))
    assert MetadataCatalog.get("small").get("thing_colors") is None


def test_label_images_of_all_entries_count_the_classes(root, tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder / "deep").mkdir(parents=True)
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "images" / "deep" / "x.png")
    wide = np.full(SIZE, 300, dtype=np.uint16)
    wide[0] = 255
    Image.fromarray(wide).save(tmp_path / "labels" / "deep" / "x.png")
    entries = entry_of("semantic", root), entry_of("semantic", tmp_path, "other")
    cfg = registered(*entries, test=("other",))
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 301
    assert len(MetadataCatalog.get("small").stuff_classes) == 301
    (record,) = DatasetCatalog.get("other")
    assert record["sem_seg_file_name"] == str(tmp_path / "labels" / "deep" / "x.png")
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    cfg.INPUT.MIN_SIZE_TRAIN = (3 * SIZE[0],)
    instances = build_train_mapper(cfg)(record)["instances"]
    assert instances.gt_classes.tolist() == [300]
    np.testing.assert_array_equal(~instances.gt_masks[0, :, 0], np.arange(3 * SIZE[0]) < 3)
    # Names given for one entry serve the others.
    registered(entry_of("semantic", root, CLASSES=["x"] * 400), entries[1], test=("other",))
    assert len(MetadataCatalog.get("other").stuff_classes) == 400


def test_entries_that_are_not_used_are_left_alone(root):
    cfg = registered(entry_of("coco", root, "unused", ANNOTATIONS="/nowhere.json"), train=("x",))
    assert "unused" not in DatasetCatalog
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == get_cfg().MODEL.SEM_SEG_HEAD.NUM_CLASSES


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_config_needs_no_files(kind, root, tmp_path):
    cfg = registered(entry_of(kind, root, COLORS=[[9, 9, 9]] * (2 if kind == "coco" else 4)))
    before = MetadataCatalog.get("small").as_dict()
    moved = cfg.dump().replace(str(root), "/moved")
    saved = tmp_path / "config.yaml"
    saved.write_text(moved)
    again = load_cfg(str(saved))
    after = MetadataCatalog.get("small").as_dict()
    assert again.MODEL.SEM_SEG_HEAD.NUM_CLASSES == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    assert after.keys() == before.keys()
    for key in before:
        if not isinstance(before[key], str):
            assert after[key] == before[key]
    with pytest.raises(UserError, match="/moved/"):
        check_datasets(again)


def test_a_config_file_and_the_command_line_register(root, tmp_path):
    file = tmp_path / "mine.yaml"
    settings = {"DATASETS": {"CUSTOM": [entry_of("coco", root)], "TRAIN": ["small"]}}
    file.write_text(yaml.safe_dump({**settings, "VERSION": 2}))
    assert load_cfg(str(file)).MODEL.SEM_SEG_HEAD.NUM_CLASSES == 2
    entry = str([entry_of("semantic", root, CLASSES=["a"] * 5)])
    cfg = load_cfg(str(file), ["DATASETS.CUSTOM", entry])
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 5


# Bad entries


def test_wrong_entries_are_named(root):
    good = entry_of("coco", root)
    assert "DATASETS.CUSTOM[0] is 'x'" in told("x")
    assert "unknown key IMAGE; did you mean IMAGES?" in told({**good, "IMAGE": "x"})
    assert "DATASETS.CUSTOM[1].ANNOTATIONS is None" in told(good, {**good, "ANNOTATIONS": None})
    assert "[0].SEGMENTS is 5; it must be a text" in told({**good, "SEGMENTS": 5})
    assert "KIND is 'voc'; it must be one of coco, coco_pan" in told({**good, "KIND": "voc"})
    assert "NAME is coco_2017_val, a dataset" in told({**good, "NAME": "coco_2017_val"})
    assert "two entries with NAME small" in told(good, good)
    assert "has 2 categories, but CLASSES names 3" in told({**good, "CLASSES": list("abc")})
    assert "each of its 2 classes" in told({**good, "COLORS": [[1, 2, 3]]})
    assert "must have a whole number as id" in told({**good, "CLASSES": [{"id": 1}]})
    assert "0 to 255, for each" in told({**good, "COLORS": ["red", "blu"]})
    labels = entry_of("semantic", root, CLASSES=[{"id": 1, "name": "a"}, {"id": 2, "name": "b"}])
    assert "small have the ids [1, 2]; those of label images are 0, 1, 2" in told(labels)
    assert "CLASSES must be a list of names or" in told({**good, "CLASSES": ["a", {"id": 1}]})
    assert "CLASSES must be a list of names or" in told({**good, "CLASSES": "cat, dog"})


def test_datasets_that_count_other_classes_are_named(root, tmp_path):
    content = json.loads((root / "instances.json").read_text())
    content["categories"][0]["id"] = 30
    path = tmp_path / "other.json"
    path.write_text(json.dumps(content))
    entries = entry_of("coco", root), entry_of("coco", root, "other", ANNOTATIONS=str(path))
    assert "Class 0 is cat in dataset small, but dog in other" in told(*entries, test=("other",))
    content["categories"].pop()
    content["categories"][0]["id"] = 7
    path.write_text(json.dumps(content))
    assert "Class 1 is dog in dataset small, but None in other" in told(*entries, test=("other",))


def test_wrong_annotation_files_are_named(root, tmp_path):
    path = tmp_path / "annotations.json"
    entry = entry_of("coco", root, ANNOTATIONS=str(path))
    assert f"{path} cannot be read (No such file" in told(entry)
    path.write_text('{"images": [')
    assert f"{path} is no JSON" in told(entry)
    path.write_text("{}")
    assert f"{path} has no 'categories'" in told(entry)
    path.write_text(json.dumps({"categories": []}))
    assert "Dataset small has no classes" in told(entry)
    twice = [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]
    path.write_text(json.dumps({"categories": twice}))
    assert "two categories of one id" in told(entry)
    for category in ("cat", {"id": "3", "name": "cat"}):
        path.write_text(json.dumps({"categories": [category]}))
        assert f"{path}: the category {category!r} must have a whole number" in told(entry)
    assert "whether it isthing" in told(
        {**entry, "KIND": "coco_panoptic", "CLASSES": [{"id": 1, "name": "a"}]}
    )


def check_of(entry):
    with pytest.raises(UserError) as caught:
        check_datasets(registered(entry))
    return str(caught.value)


def test_a_missing_part_is_named(root, tmp_path):
    for kind in KINDS:
        assert "/lost is missing" in check_of(entry_of(kind, root, IMAGES="/lost"))
    entry = entry_of("coco_panoptic", root, SEGMENTS="/lost")
    assert "/lost is missing" in check_of(entry)
    (tmp_path / "images").symlink_to(root / "images")
    (tmp_path / "labels").mkdir()
    Image.new("L", SIZE[::-1]).save(tmp_path / "labels" / "first.png")
    message = check_of(entry_of("semantic", tmp_path))
    assert "images/crowded.jpg has no label image" in message
    Image.new("L", SIZE[::-1]).save(tmp_path / "labels" / "first.bmp")
    assert "first.bmp and " in told(entry_of("semantic", tmp_path))


def test_annotations_that_do_not_fit_are_named(root, tmp_path):
    content = json.loads((root / "instances.json").read_text())
    content["annotations"][0]["category_id"] = 5
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    entry = entry_of("coco", root, ANNOTATIONS=str(path))
    assert f"{path} has an annotation of category_id 5" in check_of(entry)
    content = json.loads((root / "panoptic.json").read_text())
    content["annotations"][0]["image_id"] = 99
    path.write_text(json.dumps(content))
    entry = entry_of("coco_panoptic", root, ANNOTATIONS=str(path), SEGMENTS=str(root / "panoptic"))
    assert f"{path} annotates image 99" in check_of(entry)


def first(part, **changes):
    """Change the first entry of a part; None takes a key away."""

    def fault(content):
        entry = content[part][0]
        entry.update(changes)
        for key in [key for key, value in changes.items() if value is None]:
            del entry[key]

    return fault


INSTANCE_FAULTS = [
    (lambda c: c.pop("annotations"), "{} has no 'annotations'"),
    (lambda c: c.update(images={}), "{}: 'images' is no list"),
    (first("images", height=None), "{} has an entry of 'images' without 'height'"),
    (lambda c: c["images"].append(c["images"][0]), "{} lists image 11 twice"),
    (first("annotations", id=None), "{} has an entry of 'annotations' without 'id'"),
    (lambda c: c["annotations"].append(c["annotations"][0]), "{}: annotation 1 is there twice"),
    (first("annotations", ignore=1), "{}: annotation 1 is to be ignored"),
    (first("annotations", segmentation=None), "{}: annotation 1 has no segmentation"),
    (first("annotations", segmentation=[]), "{}: annotation 1 has no segmentation"),
    (
        first("annotations", segmentation=[1, 2, 3, 4, 5, 6]),
        "{}: annotation 1 has a segmentation that is no list of polygons",
    ),
    (
        first("annotations", segmentation={"size": [56, 40], "counts": [2240]}),
        "{}: annotation 1 has a mask of the size [56, 40], but its image is [40, 56]",
    ),
    (
        first("annotations", segmentation={"size": [40, 56], "counts": [3, 4]}),
        "{}: annotation 1 has RLE of other than 2240 pixels",
    ),
]
PANOPTIC_FAULTS = [
    (first("annotations", file_name=None), "{} has an entry of 'annotations' without 'file_name'"),
    (
        lambda c: c["annotations"][0]["segments_info"][0].pop("id"),
        "{} has an entry of 'segments_info' without 'id'",
    ),
    (
        lambda c: c["annotations"][0]["segments_info"].extend(c["annotations"][0]["segments_info"]),
        "{} lists a segment of first.png twice",
    ),
]


@pytest.mark.parametrize(
    ("kind", "fault", "message"),
    [("coco", *case) for case in INSTANCE_FAULTS]
    + [("coco_panoptic", *case) for case in PANOPTIC_FAULTS],
    ids=[case[1] for case in INSTANCE_FAULTS + PANOPTIC_FAULTS],
)
def test_a_damaged_annotation_file_is_named_before_training(kind, fault, message, root, tmp_path):
    entry = entry_of(kind, root)
    content = json.loads(Path(entry["ANNOTATIONS"]).read_text())
    fault(content)
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    told = check_of({**entry, "ANNOTATIONS": str(path), **segments_of(kind, root)})
    assert message.format(path) in told and "\n" not in told


def segments_of(kind, root):
    return {"SEGMENTS": str(root / "panoptic")} if kind == "coco_panoptic" else {}


def test_images_without_any_object_to_train_on_are_told(root, tmp_path):
    content = json.loads((root / "instances.json").read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    entry = entry_of("coco", root, ANNOTATIONS=str(path))
    assert "No image of small shows an object to train on" in check_of(entry)
    check_datasets(registered(entry, train=(), test=("small",)), splits=("TEST",))


def test_label_images_without_labels_are_told(tmp_path):
    (tmp_path / "labels").mkdir()
    Image.new("L", SIZE[::-1], 255).save(tmp_path / "labels" / "x.png")
    assert "labels hold nothing but 255" in told(entry_of("semantic", tmp_path))


# Scores


def perfect_output(name, shift=0):
    """What a model of the panoptic classes returns that knows an image; classes are shifted."""
    ids = torch.from_numpy(segment_ids(name).astype(np.int64))
    classes = torch.full(SIZE, -1)
    infos, masks, thing_classes = [], [], []
    order = [c["id"] for c in CATEGORIES]
    for number, category, crowd, _, _ in SCENES[name]:
        label = (order.index(category) + shift) % len(order)
        classes[ids == number] = label
        if crowd:
            ids[ids == number] = 0
            continue
        isthing = bool(CATEGORIES[label]["isthing"])
        infos.append({"id": number, "category_id": label, "isthing": isthing})
        if isthing:
            masks.append(ids == number)
            thing_classes.append(label)
    masks = torch.stack(masks) if masks else torch.zeros(0, *SIZE, dtype=torch.bool)
    instances = Instances(SIZE, pred_masks=masks, scores=torch.ones(len(masks)))
    instances.pred_boxes = BitMasks(masks).get_bounding_boxes()
    instances.pred_classes = torch.tensor(thing_classes, dtype=torch.int64)
    scores = torch.stack([classes == k for k in range(len(order))]).float()
    return {"panoptic_seg": (ids.int(), infos), "instances": instances, "sem_seg": scores}


def score(cfg, folder, *, shift=0, things_only=False):
    flags = cfg.MODEL.MASK_FORMER.TEST
    flags.SEMANTIC_ON = flags.INSTANCE_ON = flags.PANOPTIC_ON = True
    cfg.DATASETS.TEST = ("small",)
    check_evaluators(cfg)
    evaluator = build_evaluator(cfg, "small", str(folder))
    evaluator.reset()
    for record in DatasetCatalog.get("small"):
        output = perfect_output(name_of(record), shift)
        if things_only:
            output["instances"].pred_classes = output["instances"].pred_classes // 2
        evaluator.process([record], [output])
    return {k: round(v, 6) for k, v in summarize(evaluator.evaluate()).items()}


def test_ground_truth_scores_100_and_other_classes_0(root, tmp_path):
    cfg = registered(entry_of("coco_panoptic", root))
    right = score(cfg, tmp_path)
    assert set(right) == {"PQ", "SQ", "RQ", "PQ_th", "PQ_st", "AP", "AP50", "mIoU"}
    assert set(right.values()) == {100.0}
    assert set(score(cfg, tmp_path, shift=2).values()) == {0.0}
    # Things are never taken for stuff.
    assert score(cfg, tmp_path, shift=1)["AP"] == 0.0


def test_sparse_panoptic_annotations_score_100(root, tmp_path):
    content = json.loads((root / "panoptic.json").read_text())
    for annotation in content["annotations"]:
        annotation["segments_info"] = [
            {key: value for key, value in segment.items() if key != "area"}
            if segment["iscrowd"]
            else {"id": segment["id"], "category_id": segment["category_id"]}
            for segment in annotation["segments_info"]
        ]
    path = tmp_path / "panoptic.json"
    path.write_text(json.dumps(content))
    entry = entry_of("coco_panoptic", root, ANNOTATIONS=str(path), SEGMENTS=str(root / "panoptic"))
    assert set(score(registered(entry), tmp_path).values()) == {100.0}


def test_pictures_of_one_name_in_several_folders_score_100(tmp_path):
    write_small_sets(tmp_path)
    path = tmp_path / "panoptic.json"
    content = json.loads(path.read_text())
    for part, folder, suffix in (("images", "images", "jpg"), ("annotations", "panoptic", "png")):
        for entry in content[part]:
            old = tmp_path / folder / entry["file_name"]
            entry["file_name"] = f"{old.stem}/picture.{suffix}"
            old.with_suffix("").mkdir()
            old.rename(tmp_path / folder / entry["file_name"])
    path.write_text(json.dumps(content))
    cfg = registered(entry_of("coco_panoptic", tmp_path))
    assert set(score(cfg, tmp_path / "out").values()) == {100.0}


def test_instances_with_gaps_and_sparse_annotations_score_100(root, tmp_path):
    cfg = registered(entry_of("coco", root))
    assert score(cfg, tmp_path, things_only=True) == {"AP": 100.0, "AP50": 100.0}


def test_label_images_score_100(root, tmp_path):
    cfg = registered(entry_of("semantic", root, CLASSES=["a", "b", "c", "d"]))
    assert score(cfg, tmp_path) == {"mIoU": 100.0}


# Training


@pytest.mark.parametrize("kind", KINDS)
def test_own_data_trains_and_scores(kind, root, tmp_path, tiny_opts):
    task = {"coco": "instance", "coco_panoptic": "panoptic", "semantic": "semantic"}[kind]
    mapper = "coco_instance_lsj" if kind == "coco" else f"mask_former_{task}"
    opts = {
        "MODEL.DEVICE": "cpu",
        "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": task != "instance",
        "MODEL.MASK_FORMER.TEST.INSTANCE_ON": task == "instance",
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": task == "panoptic",
        "DATASETS.CUSTOM": [entry_of(kind, root)],
        "DATASETS.TRAIN": ("small",),
        "DATASETS.TEST": ("small",),
        "INPUT.DATASET_MAPPER_NAME": mapper,
        "INPUT.MIN_SIZE_TRAIN": (32,),
        "INPUT.MIN_SIZE_TEST": 32,
        "INPUT.IMAGE_SIZE": 64,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 2,
        "TEST.EVAL_PERIOD": 0,
        "TEST.BEST_METRIC": {"instance": "AP", "panoptic": "PQ", "semantic": "mIoU"}[task],
        "DATALOADER.NUM_WORKERS": 0,
        "OUTPUT_DIR": str(tmp_path),
    }
    pairs = [x for pair in opts.items() for x in pair]
    cfg = load_cfg("configs/quick/shapes_cityscapes_panoptic.yaml", tiny_opts + pairs)
    check_datasets(cfg)
    check_evaluators(cfg)
    trainer = Trainer(cfg)
    trainer.train()
    measured = summarize(trainer.last_results["small"])
    assert opts["TEST.BEST_METRIC"] in measured
    assert (tmp_path / "model_best.pth").is_file()
