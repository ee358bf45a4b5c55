"""Files, folders and patterns become a list of pictures with names that do not clash."""

import os

import pytest

from aff_seg.prediction.inputs import find_pictures, output_names


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.JPG", "a.png", "notes.txt", ".hidden.png", "deep/c.png", "deep/er/d.tif"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_folder_gives_its_pictures_sorted(photos):
    assert find_pictures(["photos"]) == (["photos/a.png", "photos/b.JPG"], [])


def test_file_is_taken_whatever_its_suffix(photos):
    assert find_pictures(["photos/notes.txt"]) == (["photos/notes.txt"], [])


def test_patterns(photos):
    assert find_pictures(["photos/*.png"])[0] == ["photos/a.png"]
    assert find_pictures(["photos/**/*.png"])[0] == ["photos/a.png", "photos/deep/c.png"]
    assert find_pictures(["photos/d*"])[0] == ["photos/deep/c.png"]


def test_folders_named_like_pictures_are_no_pictures(photos):
    os.makedirs("photos/x.png/y.mp4")
    assert find_pictures(["photos"]) == (["photos/a.png", "photos/b.JPG"], [])
    paths, problems = find_pictures(["photos/*[!t]"])
    assert sorted(paths) == ["photos/a.png", "photos/b.JPG", "photos/deep/c.png"]
    assert problems == []
    assert len(find_pictures(["photos/x*"])[1]) == 1


def test_name_that_looks_like_a_pattern(photos):
    os.rename("photos/a.png", "photos/a[1].png")
    assert find_pictures(["photos/a[1].png"]) == (["photos/a[1].png"], [])


def test_each_file_comes_once_in_the_order_given(photos):
    paths, problems = find_pictures(["photos/b.JPG", "photos", os.path.abspath("photos/a.png")])
    assert paths == ["photos/b.JPG", "photos/a.png"]
    assert not problems


def test_what_gives_nothing_is_named(photos):
    os.mkdir("empty")
    paths, problems = find_pictures(["gone.png", "empty", "x*", "photos"])
    assert len(paths) == 2
    assert [p.split()[0] for p in problems] == ["gone.png", "empty", "x*"]
    assert "is a folder without images" in problems[1]


def test_folder_that_cannot_be_listed_is_named(photos, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    assert find_pictures(["photos"]) == ([], ["photos cannot be read: Permission denied."])


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/a.png", "x/b.tar.jpg"], ["a", "b.tar"]),
        (["x/a.png", "y/a.png", "y/b.png"], ["x_a", "y_a", "b"]),
        (["x/a.png", "x/a.jpg", "y/x/a.png"], ["x_a", "x_a_2", "x_a_3"]),
        (["x/a.png", "y/a.png", "z/x_a.png"], ["x_a_2", "y_a", "x_a"]),
        (["x/A.png", "y/a.png", "x/é 图.png"], ["x_A", "y_a", "é 图"]),
    ],
)
def test_names_do_not_clash(paths, names):
    assert output_names(paths) == names
