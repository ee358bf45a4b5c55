"""Commands offered to mend a dataset work where they are offered."""

import pytest

from aff_seg.data.remedies import draw_command, is_drawn
from aff_seg.data.shapes import write_dataset
from aff_seg.errors import UserError

REQUEST = {"train": 1, "val": 1, "size": (32, 48), "seed": 0, "progress": False}


def test_a_new_or_drawn_root_is_drawn_into(tmp_path):
    root = tmp_path / "data"
    assert draw_command("coco", root).endswith(f"--layout coco --root {root}")
    write_dataset(layout="ade20k", root=root, **REQUEST)
    assert is_drawn(root / "ADEChallengeData2016")
    assert draw_command("coco", root).endswith(f"--root {root}")
    assert write_dataset(layout="coco", root=root, **REQUEST)


def test_a_raw_dataset_passes_for_a_downloaded_one(tmp_path):
    write_dataset(layout="ade20k", root=tmp_path, raw=True, **REQUEST)
    assert not is_drawn(tmp_path / "ADEChallengeData2016")
    assert draw_command("coco", tmp_path).endswith("export DETECTRON2_DATASETS=datasets/shapes")


def test_a_root_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(UserError, match=r"already holds README\.md"):
        write_dataset(layout="coco", root=tmp_path, **REQUEST)
    command = draw_command("coco", tmp_path)
    assert str(tmp_path) not in command
    assert command.endswith("export DETECTRON2_DATASETS=datasets/shapes")
