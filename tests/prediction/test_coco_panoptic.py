"""Results in COCO's panoptic form have the ids of the dataset, so that they can be evaluated."""

import json

import numpy as np
import pytest
from detectron2.data import Metadata
from panopticapi.evaluation import pq_compute
from small_sets import CATEGORIES, SCENES, SIZE, segment_ids, write_small_sets

from aff_seg.data.metadata import panoptic_metadata
from aff_seg.errors import UserError
from aff_seg.prediction.coco_panoptic import CocoPanopticWriter
from aff_seg.prediction.segmentation import Segmentation


def truth_of(name):
    """The ground truth of a scene as a model would give it."""
    index_of = {category["id"]: index for index, category in enumerate(CATEGORIES)}
    segments = [
        {"id": n, "isthing": bool(CATEGORIES[index_of[c]]["isthing"]), "category_id": index_of[c]}
        for n, c, crowd, _, _ in SCENES[name]
        if not crowd
    ]
    ids = segment_ids(name).astype(np.int32)
    ids[~np.isin(ids, [segment["id"] for segment in segments])] = 0
    return Segmentation(SIZE, ids, segments)


@pytest.fixture
def data(tmp_path):
    """A dataset whose image and category ids cannot be guessed, and its metadata."""
    root = tmp_path / "data"
    write_small_sets(root)
    metadata = Metadata(
        image_root=str(root / "images"),
        panoptic_json=str(root / "panoptic.json"),
        **panoptic_metadata(CATEGORIES, None),
    )
    return root, metadata


def test_the_truth_scores_100_with_ids_that_have_gaps(data, tmp_path):
    root, metadata = data
    (tmp_path / "out").mkdir()
    writer = CocoPanopticWriter(str(tmp_path / "out"), metadata)
    for name in SCENES:
        writer.add(str(root / "images" / f"{name}.jpg"), name, truth_of(name))
    writer.finish()
    written = tmp_path / "out" / "panoptic.json"
    found = pq_compute(
        str(root / "panoptic.json"), str(written), str(root / "panoptic"), str(written.parent)
    )
    assert found["All"] == {"pq": 1.0, "sq": 1.0, "rq": 1.0, "n": 4}
    content = json.loads(written.read_text())
    assert [image["id"] for image in content["images"]] == [11, 12, 13]
    told = {(c["id"], c["name"], c["isthing"]) for c in content["categories"]}
    assert told == {(c["id"], c["name"], c["isthing"]) for c in CATEGORIES}


@pytest.mark.parametrize(
    ("name", "image_id"),
    [
        ("first.jpg", 11),
        ("elsewhere/crowded.jpg", 12),
        ("000000000139.jpg", 139),
        ("a_000019_leftImg8bit.png", "a_000019"),
        ("ADE_val_00000001.jpg", "ADE_val_00000001"),
    ],
)
def test_ids_of_images(data, tmp_path, name, image_id):
    writer = CocoPanopticWriter(str(tmp_path), data[1])
    writer.add(name, "a", truth_of("empty"))
    writer.finish()
    content = json.loads((tmp_path / "panoptic.json").read_text())
    assert content["images"][0]["id"] == content["annotations"][0]["image_id"] == image_id


def test_two_images_of_one_id_are_told_of(data, tmp_path):
    writer = CocoPanopticWriter(str(tmp_path), data[1])
    writer.add("x/a.png", "x_a", truth_of("empty"))
    with pytest.raises(UserError, match="y/a.png is not in panoptic.json"):
        writer.add("y/a.png", "y_a", truth_of("first"))
    assert not (tmp_path / "y_a.png").exists()


def test_segments_without_a_pixel_are_left_out(data, tmp_path):
    found = truth_of("empty")
    found.segments.append({"id": 12, "isthing": True, "category_id": 1})
    writer = CocoPanopticWriter(str(tmp_path), data[1])
    writer.add("a.png", "a", found)
    writer.finish()
    (annotation,) = json.loads((tmp_path / "panoptic.json").read_text())["annotations"]
    assert [segment["id"] for segment in annotation["segments_info"]] == [9]
