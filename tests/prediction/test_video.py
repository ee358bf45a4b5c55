"""Videos of any kind are read and written; what is wrong with one is told in a sentence."""

import os
import signal

import cv2
import numpy as np
import pytest

from aff_seg.errors import UserError
from aff_seg.prediction import video
from aff_seg.prediction.video import VideoReader, VideoWriter


class Capture:
    """Stands in for ``cv2.VideoCapture``.

    Args:
        frames: how many it gives, the first at 0 s.
        rate, count: what it tells.
        step: seconds between frames; by default as the rate says.
    """

    def __init__(self, frames, rate=10.0, count=0.0, step=None):
        self.left, self.told, self.given = frames, {cv2.CAP_PROP_FPS: rate}, 0
        self.told[cv2.CAP_PROP_FRAME_COUNT] = count
        self.step = step or 1 / (rate or 1)

    def __call__(self, source):
        return self

    def isOpened(self):
        return True

    def get(self, key):
        return self.told.get(key, 1000 * self.step * (self.given - 1))

    def read(self):
        if self.left == 0:
            return False, None
        self.left, self.given = self.left - 1, self.given + 1
        return True, np.full((4, 6, 3), (0, 0, 200), dtype=np.uint8)

    def release(self):
        self.left = 0


@pytest.fixture
def read(monkeypatch):
    def read(source="a.mp4", **told):
        monkeypatch.setattr(cv2, "VideoCapture", Capture(**told))
        frames = VideoReader(source)
        return frames, list(frames)

    return read


def test_frames_are_rgb(read):
    frames, pictures = read(frames=3, count=3.0)
    assert len(pictures) == frames.count == 3 and frames.rate == 10 and frames.problem is None
    assert (pictures[0] == (200, 0, 0)).all()
    assert not frames.is_camera and VideoReader(0).is_camera


def test_a_file_that_ends_early_is_told_of(read):
    assert "a.mp4 ends after 3 of 8 frames" in read(frames=3, count=8.0)[0].problem
    assert "a.mp4 has no frame" in read(frames=0, count=8.0)[0].problem
    assert "Camera 2 has no frame" in read(2, frames=0)[0].problem


def test_a_file_that_opencv_stumbles_over_ends_there(monkeypatch, read):
    def stumble(self):
        if self.left == 5:
            raise cv2.error("Assertion failed")
        return whole(self)

    whole = Capture.read
    monkeypatch.setattr(Capture, "read", stumble)
    frames, pictures = read(frames=8, count=8.0)
    assert len(pictures) == 3 and "a.mp4 ends after 3 of 8 frames" in frames.problem


def test_an_uneven_rate_is_no_early_end(read):
    # Some files tell their duration alone, from which OpenCV estimates the number of frames.
    assert read(frames=10, count=28.0, step=0.3)[0].problem is None
    assert "after 5 of 28 frames" in read(frames=5, count=28.0, step=0.3)[0].problem


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), 90000.0])
def test_nonsense_about_rate_and_count_is_ignored(read, rate):
    frames, pictures = read(frames=2, rate=rate, count=-9e16, step=0.1)
    assert frames.rate == 25 and frames.count is None and len(pictures) == 2
    assert frames.problem is None


def test_ctrl_c_ends_frames_a_second_one_interrupts(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Capture(frames=1000))
    before = signal.getsignal(signal.SIGINT)
    frames, given = VideoReader(0), 0
    with frames.ended_by_interrupt():
        for _ in frames:
            given += 1
            if given == 3:
                os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert given == 3 and frames.problem is None
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"no video", "cannot be read as a video: it is damaged"),
        (None, "No such"),
    ],
)
def test_what_is_no_video_is_named(tmp_path, content, sentence):
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as caught:
        VideoReader(str(path))
    assert str(caught.value).startswith(f"{path} ")


def test_names_on_which_opencv_would_crash_are_refused(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")
    with pytest.raises(UserError, match="not UTF-8"):
        VideoReader(path)
    with pytest.raises(UserError, match="not UTF-8"), VideoWriter(path, 5) as writer:
        writer.write(np.zeros((16, 16, 3), dtype=np.uint8))


def test_a_camera_that_is_not_there_is_named():
    with pytest.raises(UserError, match="Camera 99 cannot be opened; cameras count from 0"):
        VideoReader(99)


def write(path, *shapes, rate=10.0):
    with VideoWriter(str(path), rate) as writer:
        for shape in shapes:
            writer.write(np.full((*shape, 3), (200, 0, 0), dtype=np.uint8))
    return VideoReader(str(path))


@pytest.mark.parametrize(
    ("shapes", "written"),
    [
        ([(48, 64)] * 3, (48, 64)),
        ([(5, 7)], (6, 8)),
        ([(1, 1)], (2, 2)),
        ([(8, 8), (6, 12)], (8, 8)),
        ([(3, 9000)], (4, 8190)),
    ],
)
def test_frames_of_any_size_are_written(tmp_path, shapes, written):
    frames = list(write(tmp_path / "a.mp4", *shapes))
    assert [frame.shape[:2] for frame in frames] == [written] * len(shapes)
    assert np.abs(frames[-1].astype(int) - (200, 0, 0)).max() < 20
    assert os.listdir(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize("rate", [0.5, 29.97003, 239.684])
def test_rates_are_kept(tmp_path, rate):
    assert write(tmp_path / "a.mp4", (8, 8), rate=rate).rate == pytest.approx(rate, abs=0.01)


def test_frames_may_be_repeated(tmp_path):
    with VideoWriter(str(tmp_path / "a.mp4"), 10) as writer:
        writer.write(np.zeros((8, 8, 3), dtype=np.uint8), copies=4)
    assert VideoReader(str(tmp_path / "a.mp4")).count == 4


@pytest.mark.parametrize("error", [UserError, KeyboardInterrupt])
def test_after_an_error_nothing_is_left(tmp_path, error):
    with pytest.raises(error), VideoWriter(str(tmp_path / "a.mp4"), 10) as writer:
        writer.write(np.zeros((8, 8, 3), dtype=np.uint8))
        raise error
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_told_of_and_nothing_left(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "_frames", lambda path: 0)
    with pytest.raises(UserError, match="is there room on the disk"):
        write(tmp_path / "a.mp4", (8, 8))
    assert os.listdir(tmp_path) == []
    with pytest.raises(UserError, match="Cannot write .*gone"):
        write(tmp_path / "gone" / "a.mp4", (8, 8))
