"""Files with what is found in pictures and videos: overlays, figures, strips, segments."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image
from tqdm import tqdm

from aff_seg.atomic_file import atomic_open
from aff_seg.errors import UserError, enough_memory, write_errors
from aff_seg.prediction.coco_panoptic import CocoPanopticWriter
from aff_seg.prediction.images import read_image
from aff_seg.prediction.inputs import is_video
from aff_seg.prediction.segmentation import Segmentation, resize_nearest
from aff_seg.prediction.segmenter import Segmenter, no_tokens
from aff_seg.prediction.video import VideoReader, VideoWriter
from aff_seg.visualization.panels import arrange
from aff_seg.visualization.token_figure import FIGURES

KINDS = ("overlay", *FIGURES, "strip")


class ResultWriter:
    """Segments pictures and videos and writes what is found.

    Of a picture there are ``<name>_<kind>.png`` and ``<name>.json``, of a video
    ``<name>_<kind>.mp4`` and ``<name>.jsonl``.

    Args:
        models: by what stands above their pictures. The first one's results are written; where
            there are others, a strip shows all.
        folder: to write to.
        figures: kinds of :data:`aff_seg.visualization.token_figure.FIGURES`.
        blurred: background of the figures.
        tile: side in pixels, None to scale images as in evaluation.
        panoptic: gets the results of pictures in COCO's form, or None.

    Raises:
        UserError: figures are wanted of a model without tokens.
    """

    def __init__(
        self,
        models: Mapping[str, Segmenter],
        folder: str,
        *,
        figures: Sequence[str] = (),
        blurred: bool = False,
        tile: int | None = None,
        panoptic: CocoPanopticWriter | None = None,
    ):
        self._models = models
        self._model, *self._others = models.values()
        if figures and not self._model.has_tokens:
            raise UserError(no_tokens(", ".join(f"--{kind}" for kind in figures), self._model))
        self._folder = folder
        self._figures, self._blurred = figures, blurred
        self._tile = tile
        self._panoptic = panoptic

    def process(self, path: str, name: str) -> None:
        """Do a file.

        Args:
            path: of a picture or video.
            name: of what is written, without ending.

        Raises:
            UserError: it cannot be read, or its results cannot be written.
        """
        smaller = "take a smaller --tile" if self._tile else "cut it with --tile 1024"
        with enough_memory(f"{path} needs more memory than there is; {smaller}."):
            if is_video(path):
                self.process_video(VideoReader(path), path, name)
            else:
                self._process_picture(path, name)

    def process_video(self, frames: VideoReader, source: str, name: str) -> None:
        """Do a video, or a camera until Ctrl-C.

        Args:
            frames: of it.
            source: what to call it in errors.
            name: of what is written, without ending.

        Raises:
            UserError: no frame can be read; or the video ends early, which is told when its
                results are written; or these cannot be written.
        """
        with (
            write_errors(f"the results of {source}"),
            # The videos are finished first: OpenCV tells of a full disk only then.
            atomic_open(self._path(f"{name}.jsonl")) as lines,
            contextlib.ExitStack() as videos,
            tqdm(total=frames.count, unit="frame", desc=name, leave=False) as bar,
            frames.ended_by_interrupt() if frames.is_camera else contextlib.nullcontext(),
        ):
            writers = {
                kind: videos.enter_context(
                    VideoWriter(self._path(f"{name}_{kind}.mp4"), frames.rate)
                )
                for kind in self._kinds
            }
            start, written = time.monotonic(), 0
            for frame in frames:
                found = self._segment(frame)
                # Cameras do not wait: a frame is shown for as long as it took.
                due = round((time.monotonic() - start) * frames.rate) if frames.is_camera else 0
                copies = max(1, due - written)
                for kind, picture in self._draw(frame, found):
                    writers[kind].write(picture, copies)
                told = {"frame": written, **self._model.to_json(found[0])}
                lines.write(json.dumps(told).encode() + b"\n")
                written += copies
                bar.update()
            if not written:
                raise UserError(frames.problem)
        if frames.problem:
            raise UserError(frames.problem)

    def close(self) -> None:
        """Write what is of all pictures together."""
        if self._panoptic is not None:
            with write_errors("the results of all pictures"):
                self._panoptic.finish()

    def _process_picture(self, path: str, name: str) -> None:
        image = read_image(path)
        found = self._segment(image)
        told = {"image": path, **self._model.to_json(found[0])}
        with write_errors(f"the results of {path}"):
            for kind, picture in self._draw(image, found):
                with atomic_open(self._path(f"{name}_{kind}.png")) as file:
                    Image.fromarray(picture).save(file, format="PNG", compress_level=3)
            with atomic_open(self._path(f"{name}.json")) as file:
                file.write(json.dumps(told).encode())
            if self._panoptic is not None:
                self._panoptic.add(path, name, found[0])

    @property
    def _kinds(self) -> tuple[str, ...]:
        return ("overlay", *self._figures, *(["strip"] if self._others else []))

    def _segment(self, image: np.ndarray) -> list[Segmentation]:
        """What each model finds."""
        first = self._model(image, tokens=bool(self._figures), tile=self._tile)
        return [first, *(model(image, tile=self._tile) for model in self._others)]

    def _draw(
        self, image: np.ndarray, found: Sequence[Segmentation]
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Pictures by their kind."""
        overlay = self._model.draw(image, found[0])
        yield "overlay", overlay
        for kind in self._figures:
            yield kind, self._model.draw(image, found[0], kind=kind, blurred=self._blurred)
        if self._others:
            pairs = zip(self._others, found[1:], strict=True)
            others = [model.draw(image, one) for model, one in pairs]
            picture = resize_nearest(image, overlay.shape[:2])
            panels = zip(("picture", *self._models), (picture, overlay, *others), strict=True)
            yield "strip", arrange(list(panels), columns=1 + len(self._models))

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)
