"""Draw a dataset of shapes in the layout of ADE20K, COCO or Cityscapes."""

import argparse
import sys
from pathlib import Path

from aff_seg.data.shapes import LAYOUTS, write_dataset
from aff_seg.errors import UserError

_EXAMPLE = """
Example: 400 pictures to train on and 50 to test on, 192 pixels high and 384 wide:

  python datasets/make_shapes.py --layout cityscapes --root datasets/shapes \\
      --train 400 --val 50 --size 192 384 --seed 0
  export DETECTRON2_DATASETS=datasets/shapes

Detectron2's names then read it, here cityscapes_fine_panoptic_train and _val. The same
arguments give the same bytes; a dataset that is already there is left as it is, and one
that was not finished is made anew.
"""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--layout", required=True, choices=list(LAYOUTS), help="dataset whose layout to use"
    )
    parser.add_argument(
        "--root",
        required=True,
        metavar="DIR",
        help="new or empty folder to write to; it may hold another layout of shapes. "
        "No dots in its path: Detectron2's Cityscapes reader stumbles over them",
    )
    parser.add_argument(
        "--train", type=int, default=400, metavar="N", help="training images (default 400)"
    )
    parser.add_argument(
        "--val", type=int, default=50, metavar="M", help="validation images (default 50)"
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=[192, 384],
        metavar=("H", "W"),
        help="height and width of the images in pixels (default 192 384)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="seed, not negative (default 0)"
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="as it is downloaded, without what the prepare scripts make; the first images show "
        "rare cases: no things, crowds, regions that are not evaluated",
    )
    return parser.parse_args(argv)


def main() -> int:
    """Write the dataset; returns the exit status."""
    args = parse_arguments()
    folder = Path(args.root) / LAYOUTS[args.layout].dataset.folder
    if args.layout == "cityscapes" and "." in str(Path(args.root).absolute()):
        print(
            f"Warning: {Path(args.root).absolute()} contains a dot, at which Detectron2's "
            "Cityscapes panoptic reader cuts paths; better choose a root without one.",
            file=sys.stderr,
        )
    try:
        written = write_dataset(
            layout=args.layout,
            root=args.root,
            train=args.train,
            val=args.val,
            size=tuple(args.size),
            seed=args.seed,
            raw=args.raw,
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    if written:
        print(f"Wrote {args.train} training and {args.val} validation images to {folder}.")
    else:
        print(f"Already there: {folder}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
