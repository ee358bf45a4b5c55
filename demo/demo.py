"""Segment pictures and videos: overlays, segments as JSON, and what the backbone looked at."""

import argparse
import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Sequence

import cv2
from detectron2.config import CfgNode
from tqdm import tqdm

from aff_seg.cli import plain_errors
from aff_seg.engine.checkpoint_file import check_weights_exist
from aff_seg.errors import UserError
from aff_seg.prediction.coco_panoptic import CocoPanopticWriter
from aff_seg.prediction.inputs import find_pictures, output_names
from aff_seg.prediction.results import KINDS, ResultWriter
from aff_seg.prediction.segmenter import Segmenter
from aff_seg.prediction.tiles import LEAST_TILE
from aff_seg.prediction.video import VideoReader
from aff_seg.setup_cfg import announce_device, load_cfg
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

and for each video the same as .mp4, without sound, and <name>.jsonl with a
line for each frame. <name> is the file's name without suffix, with its
folder's name before it where two would be the same. Of an animated GIF the
first picture is taken.

What cannot be read is named and left out; the exit status is then 1. A video
that ends early is named too, and what there is of it is written. Ctrl-C ends
the program, without results of the file at hand; with --webcam it ends the
video.

Examples:

  python demo/demo.py --config-file configs/quick/shapes_demo.yaml \\
      --weights demo/aff_shapes.safetensors --input docs/scene.png \\
      --output output/looking --tokens --blur

  python demo/demo.py --config-file coco/panoptic/aff_tiny --weights tiny.pth \\
      --input street.mp4 --output output/video --confidence 0.5

  python demo/demo.py --config-file cityscapes/panoptic/aff_mini \\
      --weights mini.pth --input 20megapixels.jpg --output output/large \\
      --tile 1024 --opts MODEL.DEVICE cpu

  python demo/demo.py --config-file coco/instance/aff_tiny --weights tiny.pth \\
      --other-config-file coco/instance/aff_mini --other-weights mini.pth \\
      --webcam --output output/camera
"""


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
        help="leave out panoptic segments of a lower probability, instances of a lower score and "
        "pixels whose class has a lower score, 0 to 1 (default: the threshold of the config for "
        "segments; all instances, of which those from 0.5 are drawn; all pixels)",
    )
    model.add_argument(
        "--tile",
        type=_tile,
        metavar="SIDE",
        help="cut pictures into overlapping squares of so many pixels instead of scaling them; "
        f"at least {LEAST_TILE}",
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
        help="a camera, by its number (default 0), until Ctrl-C; there is no window",
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
        "--coco-panoptic",
        action="store_true",
        help="also write panoptic results of pictures in COCO's form",
    )
    args = parser.parse_args(argv)
    if (args.other_config_file is None) != (args.other_weights is None):
        parser.error("--other-config-file and --other-weights belong together")
    figures = any(getattr(args, name) for name in FIGURES)
    if args.blur and not figures:
        parser.error("--blur is for --tokens, --clusters and --importance; give one of them")
    if args.webcam is not None and args.coco_panoptic:
        parser.error("--coco-panoptic is of pictures; leave it out with --webcam")
    if args.tile is not None and figures:
        parser.error("--tokens, --clusters and --importance are of whole pictures, without --tile")
    return args


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 1")
    return value


def _tile(text: str) -> int:
    if not text.isdecimal() or int(text) < LEAST_TILE:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from {LEAST_TILE} on")
    return int(text)


def prepare_output(args: argparse.Namespace, names: Sequence[str], paths: Sequence[str]) -> None:
    """Make the output folders; check that files can be written there and no input is replaced."""
    panoptic = [panoptic_folder(args)] if args.coco_panoptic else []
    for folder in (args.output, *panoptic):
        try:
            os.makedirs(folder, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise UserError(f"Cannot write to --output {folder}: {error.strerror}.") from error
    inputs = {os.path.realpath(path): path for path in paths}
    for name in names:
        targets = [f"{name}_{kind}{suffix}" for kind in KINDS for suffix in (".png", ".mp4")]
        targets = [os.path.join(args.output, target) for target in targets]
        targets += [os.path.join(folder, f"{name}.png") for folder in panoptic]
        for target in targets:
            if path := inputs.get(os.path.realpath(target)):
                raise UserError(
                    f"The results would replace the input {path}; give another --output."
                )


def panoptic_folder(args: argparse.Namespace) -> str:
    """Where results in COCO's form go."""
    return os.path.join(args.output, "panoptic")


def load_configs(args: argparse.Namespace) -> dict[str, CfgNode]:
    """One model's, or those of two to compare, by what stands above their pictures."""
    pairs = [(args.config_file, args.weights)]
    if args.other_weights:
        pairs.append((args.other_config_file, args.other_weights))
    configs = {}
    for number, (config, weights) in enumerate(pairs, start=1):
        cfg = load_cfg(config, args.opts)
        cfg.MODEL.WEIGHTS = weights
        check_weights_exist(weights)
        configs[f"{number}: {os.path.splitext(os.path.basename(config))[0]}"] = cfg
    return configs


def build_writer(args: argparse.Namespace, configs: dict[str, CfgNode]) -> ResultWriter:
    """What does the work."""
    announce_device(next(iter(configs.values())))
    models = {name: Segmenter(cfg) for name, cfg in configs.items()}
    for model in models.values():
        model.confidence = args.confidence
    panoptic = None
    if args.coco_panoptic:
        panoptic = CocoPanopticWriter(panoptic_folder(args), next(iter(models.values())).metadata)
    return ResultWriter(
        models,
        args.output,
        figures=[name for name in FIGURES if getattr(args, name)],
        blurred=args.blur,
        tile=args.tile,
        panoptic=panoptic,
    )


def process_all(args: argparse.Namespace, configs: dict[str, CfgNode], paths: Sequence[str]) -> int:
    """Process every file, name those that fail, and return how many did not."""
    names = output_names(paths)
    prepare_output(args, names, paths)
    writer = build_writer(args, configs)
    done = 0
    with (
        contextlib.closing(writer),
        tqdm(total=len(paths), unit="file", disable=len(paths) < 2) as bar,
    ):
        for path, name in zip(paths, names, strict=True):
            try:
                writer.process(path, name)
                done += 1
            except UserError as error:
                bar.write(str(error), file=sys.stderr)
            bar.update()
    print(f"{done} of {len(paths)} files are done; the results are in {args.output}.")
    return done


def process_camera(args: argparse.Namespace, configs: dict[str, CfgNode]) -> None:
    """Process what a camera sees."""
    camera, name = VideoReader(args.webcam), f"camera_{args.webcam}"
    prepare_output(args, [], [])
    build_writer(args, configs).process_video(camera, name, name)
    print(f"The results are in {args.output}.")


def run(args: argparse.Namespace) -> None:
    """Process every input, and raise a :class:`UserError` at the end where some failed."""
    configs = load_configs(args)
    first = next(iter(configs.values()))
    if args.coco_panoptic and not first.MODEL.MASK_FORMER.TEST.PANOPTIC_ON:
        raise UserError(
            "--coco-panoptic needs panoptic results, which this config does not give; leave it "
            "out, or set MODEL.MASK_FORMER.TEST.PANOPTIC_ON True."
        )
    if args.webcam is not None:
        process_camera(args, configs)
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
    # What OpenCV cannot read is told in the program's own words.
    cv2.setLogLevel(0)
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    with plain_errors(PROGRAM):
        run(args)


if __name__ == "__main__":
    main()
