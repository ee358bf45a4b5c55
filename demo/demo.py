"""Segment pictures: overlays, segments as JSON, and where the model kept its tokens."""

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode
from PIL import Image
from tqdm import tqdm

from aff_seg.cli import plain_errors
from aff_seg.engine.checkpoint import atomic_open, check_weights_exist
from aff_seg.errors import UserError
from aff_seg.prediction.images import read_image
from aff_seg.prediction.inputs import find_images, output_names
from aff_seg.prediction.segmenter import Segmenter
from aff_seg.setup_cfg import announce_device, load_cfg
from aff_seg.visualization.token_figure import draw_tokens

PROGRAM = "demo.py"
EXAMPLE = """
For each picture the output folder gets

  <name>_overlay.png  the picture with the segments found and their classes
  <name>_tokens.png   with --tokens: the tokens of stages 2, 3 and 4 in red
  <name>.json         the segments: class, area, box, mask as COCO RLE; see
                      aff_seg/prediction/segments.py for every field

where <name> is the picture's file name without suffix, with its folder's name before it where
two would be the same. Pictures that cannot be read are named and left out; the exit status is
then 1.

Example: every PNG below a folder, with a config value changed:

  python demo/demo.py --config-file configs/cityscapes/panoptic/aff_mini.yaml \\
      --weights model_final.pth --input 'photos/**/*.png' --output output/looking --tokens \\
      --opts MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD 0.5
"""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="config the model was trained with"
    )
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="its checkpoint, .pth or .safetensors"
    )
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="PATH",
        help="picture files, folders of pictures, or quoted patterns such as 'photos/**/*.jpg'",
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder to write to, made where missing"
    )
    parser.add_argument("--tokens", action="store_true", help="also draw the remaining tokens")
    parser.add_argument(
        "--opts",
        nargs="*",
        default=[],
        metavar="KEY VALUE",
        help="config keys to change; MODEL.DEVICE cpu keeps the model off the GPU",
    )
    return parser.parse_args(argv)


def prepare_output(folder: str, targets: Sequence[str], paths: Sequence[str]) -> None:
    """Make the output folder; check that files can be written there and no input is replaced."""
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"Cannot write to --output {folder}: {error.strerror}.") from error
    pictures = {os.path.realpath(path): path for path in paths}
    for target in targets:
        for suffix in ("_overlay.png", "_tokens.png"):
            if path := pictures.get(os.path.realpath(target + suffix)):
                raise UserError(
                    f"The results would replace the input {path}; give another --output."
                )


def write_picture(path: str, picture: np.ndarray) -> None:
    """Write a PNG, whole or not at all."""
    with atomic_open(path) as file:
        Image.fromarray(picture).save(file, format="PNG", compress_level=3)


def process(segmenter: Segmenter, path: str, target: str, *, tokens: bool) -> None:
    """Segment the picture at ``path`` and write ``<target>_overlay.png`` and the others."""
    image = read_image(path)
    segmentation = segmenter(image, tokens=tokens)
    segments = segmenter.to_json(segmentation)
    overlay = segmenter.draw(image, segmentation)
    try:
        write_picture(f"{target}_overlay.png", overlay)
        if tokens:
            figure = draw_tokens(image, segmentation)
            write_picture(f"{target}_tokens.png", figure)
        with atomic_open(f"{target}.json") as file:
            file.write(json.dumps({"image": path, **segments}).encode())
    except OSError as error:
        raise UserError(
            f"Cannot write the results of {path}: {error.strerror or error}."
        ) from error


def process_all(cfg: CfgNode, paths: Sequence[str], output: str, *, tokens: bool) -> int:
    """Process every picture, name those that fail, and return how many did not."""
    targets = [os.path.join(output, name) for name in output_names(paths)]
    prepare_output(output, targets, paths)
    announce_device(cfg)
    segmenter = Segmenter(cfg)
    done = 0
    with tqdm(total=len(paths), unit="picture", disable=len(paths) < 2) as bar:
        for path, target in zip(paths, targets, strict=True):
            try:
                process(segmenter, path, target, tokens=tokens)
                done += 1
            except UserError as error:
                bar.write(str(error), file=sys.stderr)
            bar.update()
    print(f"{done} of {len(paths)} pictures are done; the results are in {output}.")
    return done


def run(args: argparse.Namespace) -> None:
    """Process every input, and raise a :class:`UserError` at the end where some failed."""
    cfg = load_cfg(args.config_file, args.opts)
    check_weights_exist(args.weights)
    cfg.MODEL.WEIGHTS = args.weights
    paths, unusable = find_images(args.input)
    for problem in unusable:
        print(problem, file=sys.stderr)
    done = process_all(cfg, paths, args.output, tokens=args.tokens) if paths else 0
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
