"""Frames of videos and cameras, in and out, through OpenCV."""

import contextlib
import os
from collections.abc import Iterator

import cv2
import numpy as np

from aff_seg.errors import UserError

SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
# Frames per second where a source does not tell.
USUAL_RATE = 25.0


class VideoReader:
    """Frames of a video file or a camera.

    Args:
        source: path, or number of a camera.

    Attributes:
        rate: frames per second.
        count: number of frames as the file says, None for cameras and where it does not.
        problem: after the last frame, a sentence if there were fewer than the file says.

    Raises:
        UserError: it cannot be opened.
    """

    def __init__(self, source: str | int):
        self._name = f"Camera {source}" if isinstance(source, int) else source
        self._capture = cv2.VideoCapture(source)
        if not self._capture.isOpened():
            raise UserError(
                f"{self._name} cannot be opened as a video; is it one that OpenCV reads "
                f"({', '.join(SUFFIXES)})?"
                if isinstance(source, str)
                else f"{self._name} cannot be opened; cameras count from 0."
            )
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate < 1000 else USUAL_RATE
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.count = count if count > 0 else None
        self.problem: str | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames ``(H, W, 3)`` uint8, RGB."""
        given = 0
        try:
            while True:
                there, frame = self._capture.read()
                if not there:
                    break
                given += 1
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        finally:
            self._capture.release()
        if given == 0 or self.count is not None and given < self.count:
            self.problem = (
                f"{self._name} ends after {given} of {self.count or 'any'} frames; the rest is "
                "damaged or missing."
            )


class VideoWriter:
    """Writes frames to an MP4 file, which has its name once it is complete.

    Args:
        path: ends in ``.mp4``.
        rate: frames per second.
    """

    def __init__(self, path: str, rate: float):
        self._path, self._rate = path, rate
        folder, name = os.path.split(path)
        self._unfinished = os.path.join(folder, f".unfinished.{name}")
        self._writer: cv2.VideoWriter | None = None
        self._written = 0

    def write(self, frame: np.ndarray) -> None:
        """Add a frame, ``(H, W, 3)`` uint8, RGB; all have one size.

        Raises:
            UserError: the file cannot be written.
        """
        # The codec wants even sides.
        height, width = (side - side % 2 for side in frame.shape[:2])
        if self._writer is None:
            code = cv2.VideoWriter_fourcc(*"mp4v")
            size = (width, height)
            self._writer = cv2.VideoWriter(self._unfinished, code, self._rate, size)
            if not self._writer.isOpened():
                raise UserError(f"Cannot write {self._path}: OpenCV cannot open it for writing.")
        self._writer.write(cv2.cvtColor(frame[:height, :width], cv2.COLOR_RGB2BGR))
        self._written += 1

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *error: object) -> None:
        """Finish the file; also after an error, with the frames that there are.

        Raises:
            UserError: not all frames are in the file.
        """
        if self._writer is None:
            return
        self._writer.release()
        # OpenCV does not tell of a full disk.
        if _frames(self._unfinished) == self._written:
            os.replace(self._unfinished, self._path)
            return
        with contextlib.suppress(FileNotFoundError):
            os.remove(self._unfinished)
        raise UserError(f"Cannot write {self._path} whole; is there room on the disk?")


def _frames(path: str) -> int:
    capture = cv2.VideoCapture(path)
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    return count
