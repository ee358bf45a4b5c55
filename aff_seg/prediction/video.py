"""Frames of videos and cameras, in and out, through OpenCV. Sound is not read."""

import contextlib
import math
import os
import signal
from collections.abc import Iterator

import cv2
import numpy as np

from aff_seg.errors import UserError

SUFFIXES = (
    *(".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
    *(".mts", ".ogv", ".webm", ".wmv"),
)
# Frames per second where a source does not tell.
USUAL_RATE = 25.0
# Longest side of a frame of MPEG-4, an even number.
MAX_SIDE = 8190


class VideoReader:
    """Frames of a video file or a camera.

    Args:
        source: path, or number of a camera.

    Attributes:
        is_camera: whether it is a camera.
        rate: frames per second.
        count: number of frames as the file says, None for cameras and where it does not.
        problem: after the last frame, a sentence if there was none, or fewer than the file says.

    Raises:
        UserError: it cannot be opened.
    """

    def __init__(self, source: str | int):
        self.is_camera = isinstance(source, int)
        self._name = f"Camera {source}" if self.is_camera else source
        if not self.is_camera:
            _check_name(source)
        self._capture = cv2.VideoCapture(source)
        if not self._capture.isOpened():
            raise UserError(
                f"{self._name} cannot be opened; cameras count from 0."
                if self.is_camera
                else f"{self._name} {_why_closed(source)}."
            )
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0.01 < rate < 500 else USUAL_RATE
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.count = count if count > 0 else None
        self.problem: str | None = None
        self._stopped = False

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames ``(H, W, 3)`` uint8, RGB."""
        given, end = 0, 0.0
        try:
            while not self._stopped:
                frame = self._read()
                if frame is None:
                    break
                given += 1
                end = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 + 1 / self.rate
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        finally:
            self._capture.release()
        # Where a file tells its duration alone, the count is that of an even rate.
        passed = max(given, round(end * self.rate))
        if given == 0:
            self.problem = f"{self._name} has no frame that can be read."
        elif self.count is not None and passed < self.count and not self._stopped:
            self.problem = (
                f"{self._name} ends after {given} of {self.count} frames; the rest is damaged, "
                "missing, or sound alone."
            )

    def _read(self) -> np.ndarray | None:
        """The next frame, BGR; None at the end, and where the file is damaged."""
        try:
            there, frame = self._capture.read()
        except cv2.error:
            return None
        return frame if there else None

    @contextlib.contextmanager
    def ended_by_interrupt(self) -> Iterator[None]:
        """A context in which Ctrl-C ends the frames; a second one interrupts as elsewhere."""
        before = signal.getsignal(signal.SIGINT)

        def end(*_: object) -> None:
            self._stopped = True
            signal.signal(signal.SIGINT, before)

        signal.signal(signal.SIGINT, end)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


def _check_name(path: str) -> None:
    """Refuse what OpenCV crashes on: bytes of a name that are no text."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{path} is no name for a video: it is not UTF-8; give the file or folder another name."
        ) from error


def _why_closed(path: str) -> str:
    try:
        with open(path, "rb") as file:
            there = file.read(1)
    except OSError as error:
        return f"cannot be read as a video: {error.strerror}"
    if not there:
        return "is empty (zero bytes)"
    return "cannot be read as a video: it is damaged, or of a kind that OpenCV does not know"


class VideoWriter:
    """Writes frames to an MP4 file, which has its name once it is complete.

    As a context it finishes the file at its end, and leaves none after an error. Frames that are
    longer than :data:`MAX_SIDE` are scaled down.

    Args:
        path: ends in ``.mp4``.
        rate: frames per second.
    """

    def __init__(self, path: str, rate: float):
        # MPEG-4 counts time in at most 65535 parts of a second.
        self._path, self._rate = path, round(rate, 3 if rate < 60 else 2)
        folder, name = os.path.split(path)
        self._unfinished = os.path.join(folder, f".unfinished.{name}")
        self._writer: cv2.VideoWriter | None = None
        self._scale, self._size = 1.0, (0, 0)
        self._written = 0

    def write(self, frame: np.ndarray, copies: int = 1) -> None:
        """Add a frame.

        Args:
            frame: ``(H, W, 3)`` uint8, RGB; of another size than the first it is cut or filled up.
            copies: how many times.

        Raises:
            UserError: the file cannot be written.
        """
        if self._writer is None:
            self._scale = min(1.0, MAX_SIDE / max(frame.shape[:2]))
            # The codec wants even sides.
            self._size = tuple(2 * math.ceil(side * self._scale / 2) for side in frame.shape[:2])
            self._writer = self._open()
        fitting = cv2.cvtColor(self._fitted(frame), cv2.COLOR_RGB2BGR)
        for _ in range(copies):
            self._writer.write(fitting)
            self._written += 1

    def _open(self) -> cv2.VideoWriter:
        _check_name(self._path)
        code = cv2.VideoWriter_fourcc(*"mp4v")
        writer = cv2.VideoWriter(self._unfinished, code, self._rate, self._size[::-1])
        if not writer.isOpened():
            raise UserError(f"Cannot write {self._path}: OpenCV cannot open it for writing.")
        return writer

    def _fitted(self, frame: np.ndarray) -> np.ndarray:
        if self._scale < 1:
            size = [max(1, round(side * self._scale)) for side in frame.shape[1::-1]]
            frame = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        height, width = self._size
        frame = frame[:height, :width]
        missing = (0, height - frame.shape[0], 0, width - frame.shape[1])
        return cv2.copyMakeBorder(frame, *missing, cv2.BORDER_REPLICATE)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Finish the file, or after an error remove it.

        Raises:
            UserError: not all frames are in the file.
        """
        if self._writer is None:
            return
        self._writer.release()
        try:
            # OpenCV does not tell of a full disk.
            if kind is None and _frames(self._unfinished) != self._written:
                raise UserError(f"Cannot write {self._path} whole; is there room on the disk?")
            if kind is None:
                os.replace(self._unfinished, self._path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(self._unfinished)


def _frames(path: str) -> int:
    capture = cv2.VideoCapture(path)
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    return count
