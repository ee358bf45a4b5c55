"""Segment pictures and videos: overlays, segments as JSON, and what the backbone looked at."""

import argparse
import contextlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.config import CfgNode
from PIL import Image
from tqdm import tqdm

from aff_seg.cli import plain_errors
from aff_seg.engine.checkpoint_file import atomic_open, check_weights_exist
from aff_seg.errors import UserError
from aff_seg.prediction.coco_panoptic import CocoPanopticWriter
from aff_seg.prediction.images import read_image
from aff_seg.prediction.inputs import find_pictures, is_video, output_names
from aff_seg.prediction.segmentation import Segmentation, resize_nearest
from aff_seg.prediction.segmenter import Segmenter
from aff_seg.prediction.video import VideoReader, VideoWriter
from aff_seg.setup_cfg import announce_device, find_config, load_cfg
from aff_seg.visualization.panels import arrange
from aff_seg.visualization.token_figure import FIGURES

PROGRAM = "demo.py"
EXAMPLE = """
For each picture the output folder gets

  <name>_overlay.png     the picture with the segments found and their classes
  <name>_tokens.png      with --tokens: the tokens of stages 2, 3 and 4 in red
  <name>_clusters.png    with --clusters: tokens of a cluster in one colour
  <name>_importance.png  with --importance: the learned importance of tokens
  <name>_strip.png       with --other-...: picture, this model, the other one
  <name>.json            the segments: class, area, box, mask as COCO RLE; see
                         aff_seg/prediction/segments.py for every field
  panoptic/              with --coco-panoptic: PNG files and panoptic.json in
                         COCO's form, which its evaluation reads

and for each video <name>_overlay.mp4 (or _strip.mp4) and <name>.jsonl with a
line for each frame. <name> is the file's name without suffix, with its
folder's name before it where two would be the same. What cannot be read is
named and left out; the exit status is then 1.

Examples:

  python demo/demo.py --config-file configs/quick/shapes_demo.yaml \\
      --weights demo/aff_shapes.safetensors --input 'photos/**/*.png' \\
      --output output/looking --tokens --blur

  python demo/demo.py --config-file coco/panoptic/aff_tiny --weights tiny.pth \\
      --input street.mp4 --output output/video --confidence 0.5

  python demo/demo.py --config-file cityscapes/panoptic/aff_mini \\
      --weights mini.pth --input 20megapixels.jpg --output output/large \\
      --tile 1024 --opts MODEL.DEVICE cpu
"""


@dataclass(frozen=True)
class Options:
    """What is wanted beside the overlay.

    Attributes:
        output: folder.
        figures: of ``FIGURES``.
        blurred: background of the figures.
        tile: side in pixels, None to scale images as in evaluation.
    """

    output: str
    figures: Sequence[str]
    blurred: bool
    tile: int | None


class Demo:
    """Segments pictures and videos and writes what is wanted of them.

    Args:
        models: the model by name, and another to compare it with if there are two.
        options: see there.
        panoptic: gets the results of pictures in COCO's form, or None.
    """

    def __init__(
        self,
        models: dict[str, Segmenter],
        options: Options,
        panoptic: CocoPanopticWriter | None = None,
    ):
        self._models = models
        self._model = next(iter(models.values()))
        self._options = options
        self._panoptic = panoptic

    def process(self, path: str, name: str) -> None:
        """Do a file.

        Raises:
            UserError: it cannot be read, or its results cannot be written.
        """
        if is_video(path):
            self.process_video(VideoReader(path), path, name)
        else:
            self._process_picture(path, name)

    def process_video(self, frames: VideoReader, path: str, name: str) -> None:
        """Write ``<name>_overlay.mp4`` or ``_strip.mp4``, and ``<name>.jsonl``.

        Ctrl-C ends what comes from a camera.
        """
        kind, draw = ("strip", self._strip) if len(self._models) > 1 else ("overlay", self._overlay)
        is_camera = frames.count is None
        with (
            _named_errors(path),
            VideoWriter(self._path(f"{name}_{kind}.mp4"), frames.rate) as video,
            atomic_open(self._path(f"{name}.jsonl")) as lines,
            tqdm(total=frames.count, unit="frame", desc=name, leave=False) as bar,
            contextlib.suppress(KeyboardInterrupt) if is_camera else contextlib.nullcontext(),
        ):
            for number, frame in enumerate(frames):
                found = self._segment(frame)
                video.write(draw(frame, found))
                told = {"frame": number, **self._model.to_json(found[0])}
                lines.write(json.dumps(told).encode() + b"\n")
                bar.update()
        if frames.problem:
            raise UserError(frames.problem)

    def _process_picture(self, path: str, name: str) -> None:
        image = read_image(path)
        found = self._segment(image, tokens=bool(self._options.figures))
        pictures = {"overlay": self._overlay(image, found)}
        for kind in self._options.figures:
            pictures[kind] = self._model.draw(
                image, found[0], kind=kind, blurred=self._options.blurred
            )
        if len(self._models) > 1:
            pictures["strip"] = self._strip(image, found)
        with _named_errors(path):
            for kind, picture in pictures.items():
                write_picture(self._path(f"{name}_{kind}.png"), picture)
            if self._panoptic is not None:
                self._panoptic.add(path, name, found[0])
            told = {"image": path, **self._model.to_json(found[0])}
            with atomic_open(self._path(f"{name}.json")) as file:
                file.write(json.dumps(told).encode())

    def _segment(self, image: np.ndarray, *, tokens: bool = False) -> list[Segmentation]:
        """What each model finds."""
        options = {"tile": self._options.tile} if self._options.tile else {"tokens": tokens}
        return [model(image, **options) for model in self._models.values()]

    def _overlay(self, image: np.ndarray, found: Sequence[Segmentation]) -> np.ndarray:
        return self._model.draw(image, found[0])

    def _strip(self, image: np.ndarray, found: Sequence[Segmentation]) -> np.ndarray:
        overlays = [
            (name, model.draw(image, one))
            for (name, model), one in zip(self._models.items(), found, strict=True)
        ]
        height, width = overlays[0][1].shape[:2]
        picture = resize_nearest(image, (height, width))
        return arrange([("picture", picture), *overlays], columns=3)

    def finish(self) -> None:
        """Write what is of all pictures together."""
        if self._panoptic is not None:
            with _named_errors("all pictures"):
                self._panoptic.finish()

    def _path(self, name: str) -> str:
        return os.path.join(self._options.output, name)


@contextlib.contextmanager
def _named_errors(path: str) -> Iterator[None]:
    """Tell of results that cannot be written with the name of what they are of."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"Cannot write the results of {path}: {error.strerror or error}."
        ) from error


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--config-file",
        required=True,
        metavar="FILE",
        help="config the model was trained with, a path or a name such as coco/panoptic/aff_tiny",
    )
    model.add_argument(
        "--weights", required=True, metavar="FILE", help="its checkpoint, .pth or .safetensors"
    )
    model.add_argument(
        "--other-config-file", metavar="FILE", help="another model, for a strip of both"
    )
    model.add_argument("--other-weights", metavar="FILE", help="its checkpoint")
    model.add_argument(
        "--confidence",
        type=_share,
        metavar="P",
        help="leave out segments and instances of a lower probability or score, 0 to 1 (default: "
        "the threshold of the config for segments, 0.5 for drawn instances)",
    )
    model.add_argument(
        "--tile",
        type=int,
        metavar="SIDE",
        help="cut pictures into overlapping squares of so many pixels instead of scaling them",
    )
    model.add_argument(
        "--opts",
        nargs="*",
        default=[],
        metavar="KEY VALUE",
        help="config keys to change; MODEL.DEVICE cpu keeps the model off the GPU",
    )
    source = parser.add_argument_group("what to segment").add_mutually_exclusive_group(
        required=True
    )
    source.add_argument(
        "--input",
        nargs="+",
        metavar="PATH",
        help="pictures, videos, folders of them, or quoted patterns such as 'photos/**/*.jpg'",
    )
    source.add_argument(
        "--webcam",
        type=int,
        nargs="?",
        const=0,
        metavar="N",
        help="a camera, by its number (default 0), until Ctrl-C",
    )
    results = parser.add_argument_group("results")
    results.add_argument(
        "--output", required=True, metavar="DIR", help="folder to write to, made where missing"
    )
    for name, what in (
        ("tokens", "the remaining tokens"),
        ("clusters", "the clusters of tokens"),
        ("importance", "the importance of tokens"),
    ):
        results.add_argument(f"--{name}", action="store_true", help=f"also draw {what}")
    results.add_argument(
        "--blur", action="store_true", help="draw these figures on a blurred picture"
    )
    results.add_argument(
        "--coco-panoptic", action="store_true", help="also write panoptic results in COCO's form"
    )
    args = parser.parse_args(argv)
    if (args.other_config_file is None) != (args.other_weights is None):
        parser.error("--other-config-file and --other-weights belong together")
    if args.tile is not None and any(getattr(args, name) for name in FIGURES):
        parser.error("--tokens, --clusters and --importance are of whole pictures, without --tile")
    return args


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def prepare_output(folder: str, names: Sequence[str], paths: Sequence[str]) -> None:
    """Make the output folder; check that files can be written there and no input is replaced."""
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"Cannot write to --output {folder}: {error.strerror}.") from error
    inputs = {os.path.realpath(path): path for path in paths}
    endings = [f"_{kind}.png" for kind in ("overlay", "strip", *FIGURES)]
    for name in names:
        for ending in (*endings, "_overlay.mp4", "_strip.mp4"):
            target = os.path.realpath(os.path.join(folder, name + ending))
            if path := inputs.get(target):
                raise UserError(
                    f"The results would replace the input {path}; give another --output."
                )


def write_picture(path: str, picture: np.ndarray) -> None:
    """Write a PNG, whole or not at all."""
    with atomic_open(path) as file:
        Image.fromarray(picture).save(file, format="PNG", compress_level=3)


def load_configs(args: argparse.Namespace) -> dict[str, CfgNode]:
    """One model's, or those of two to compare, by what stands above their pictures."""
    pairs = [(args.config_file, args.weights)]
    if args.other_weights:
        pairs.append((args.other_config_file, args.other_weights))
    configs = {}
    for number, (config, weights) in enumerate(pairs, start=1):
        cfg = load_cfg(find_config(config), [*args.opts, "MODEL.WEIGHTS", weights])
        check_weights_exist(weights)
        configs[f"{number}: {os.path.splitext(os.path.basename(config))[0]}"] = cfg
    return configs


def build_demo(args: argparse.Namespace, configs: dict[str, CfgNode]) -> Demo:
    """What does the work."""
    announce_device(next(iter(configs.values())))
    models = {name: Segmenter(cfg) for name, cfg in configs.items()}
    for model in models.values():
        model.confidence = args.confidence
    panoptic = None
    if args.coco_panoptic:
        folder = os.path.join(args.output, "panoptic")
        os.makedirs(folder, exist_ok=True)
        panoptic = CocoPanopticWriter(folder, next(iter(models.values())).metadata)
    figures = [name for name in FIGURES if getattr(args, name)]
    return Demo(models, Options(args.output, figures, args.blur, args.tile), panoptic)


def process_all(args: argparse.Namespace, configs: dict[str, CfgNode], paths: Sequence[str]) -> int:
    """Process every file, name those that fail, and return how many did not."""
    names = output_names(paths)
    prepare_output(args.output, names, paths)
    demo = build_demo(args, configs)
    done = 0
    with tqdm(total=len(paths), unit="file", disable=len(paths) < 2) as bar:
        for path, name in zip(paths, names, strict=True):
            try:
                demo.process(path, name)
                done += 1
            except UserError as error:
                bar.write(str(error), file=sys.stderr)
            bar.update()
    demo.finish()
    print(f"{done} of {len(paths)} files are done; the results are in {args.output}.")
    return done


def run(args: argparse.Namespace) -> None:
    """Process every input, and raise a :class:`UserError` at the end where some failed."""
    configs = load_configs(args)
    if args.webcam is not None:
        prepare_output(args.output, [], [])
        name = f"camera_{args.webcam}"
        camera = VideoReader(args.webcam)
        build_demo(args, configs).process_video(camera, name, name)
        print(f"The results are in {args.output}.")
        return
    paths, unusable = find_pictures(args.input)
    for problem in unusable:
        print(problem, file=sys.stderr)
    done = process_all(args, configs, paths) if paths else 0
    if failed := len(paths) - done + len(unusable):
        raise UserError(f"{failed} of the inputs failed; see above.")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program; exits with status 1 where anything failed."""
    args = parse_arguments(argv)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("aff_seg").setLevel(logging.INFO)
    with plain_errors(PROGRAM):
        run(args)


if __name__ == "__main__":
    main()
