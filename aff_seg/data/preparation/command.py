"""The command line of the scripts ``datasets/prepare_*.py``."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from aff_seg.cli import plain_errors
from aff_seg.data.preparation.processes import only_run
from aff_seg.data.preparation.steps import TASKS, Dataset, Step, check, prepare
from aff_seg.errors import UserError

_MOST_SHOWN = 20
_EPILOG = """
What is there already is left as it is, and a run that was stopped goes on where it was. The exit
status is 1 where a file is missing or wrong; it is named, and the others are made all the same.
"""


def run(dataset: Dataset, description: str) -> None:
    """Prepare or check a dataset as the command line says, and exit."""
    with plain_errors(Path(sys.argv[0]).name):
        sys.exit(main(dataset, description))


def main(dataset: Dataset, description: str, argv: Sequence[str] | None = None) -> int:
    """Prepare or check a dataset; returns the exit status, 1 where anything is wrong.

    Raises:
        UserError: the dataset is not there at all, or nothing can be written.
    """
    args = _parse(dataset, description, argv)
    folder = Path(args.root) / dataset.folder
    if not folder.is_dir():
        raise UserError(
            f"{folder} is missing; name the folder that holds {dataset.folder} with --root, or "
            "fetch the dataset as datasets/README.md shows."
        )
    if args.check:
        return _check(dataset, folder, args)
    try:
        with only_run(folder):
            return _prepare(dataset, folder, args)
    except OSError as error:
        raise UserError(
            f"Cannot write {error.filename or folder} ({error.strerror}); free some space there "
            "or correct its permissions."
        ) from error


def _parse(dataset: Dataset, description: str, argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    splits = tuple(dataset.published)
    parser.add_argument(
        "--root",
        default=root,
        metavar="DIR",
        help=f"folder that holds {dataset.folder}; by default that of DETECTRON2_DATASETS, which "
        f"is {root} now",
    )
    parser.add_argument(
        "--splits", nargs="+", choices=splits, default=splits, help="default: all of them"
    )
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, default=TASKS, help="default: all of them"
    )
    parser.add_argument(
        "--workers",
        type=_positive,
        default=os.cpu_count() or 1,
        metavar="N",
        help="number of processes (default: one for each processor, %(default)s)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; list what is missing or wrong, also of the published files",
    )
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1")
    return int(text)


def _prepare(dataset: Dataset, folder: Path, args: argparse.Namespace) -> int:
    faults = []
    steps = 0
    for _, step in _steps(dataset, folder, args, faults):
        made, failed = prepare(step, workers=args.workers)
        faults += failed
        before = len(step.jobs) - made - len(failed)
        told = f"{step.title}: {made} done, {before} done before, {len(failed)} failed"
        if failed and step.listing:
            told += f"; {step.listing.path.name} is not written until all are done"
        print(f"{told}.")
        steps += 1
    if not steps and not faults:
        print("Nothing is to be made for these tasks; --check looks at the published files.")
    _tell(faults)
    return int(bool(faults))


def _check(dataset: Dataset, folder: Path, args: argparse.Namespace) -> int:
    faults = []
    pictures = dict.fromkeys(args.splits, 0)
    for split, step in _steps(dataset, folder, args, faults):
        faults += check(step, workers=args.workers)
        pictures[split] = max(pictures[split], len(step.jobs))
    _tell(faults)
    if faults:
        print(
            "Fetch published files again; delete those that this script makes, and run it without "
            "--check.",
            file=sys.stderr,
        )
        return 1
    counts = (
        f"{number:,} {split} pictures ({dataset.published[split]:,} are published)"
        for split, number in pictures.items()
    )
    print(f"{folder} is in order: {', '.join(counts)}.")
    return 0


def _steps(
    dataset: Dataset, folder: Path, args: argparse.Namespace, faults: list[str]
) -> Iterator[tuple[str, Step]]:
    """Yield each split with its steps; what cannot be begun is added to ``faults``."""
    for split in args.splits:
        for make_step in dataset.steps(folder, split, args.tasks, args.check):
            try:
                step = make_step()
            except UserError as error:
                faults.append(str(error))
            else:
                yield split, step


def _tell(faults: list[str]) -> None:
    # Several steps stumble over the same file.
    different = list(dict.fromkeys(faults))
    for fault in different[:_MOST_SHOWN]:
        print(fault, file=sys.stderr)
    if len(different) > _MOST_SHOWN:
        print(f"And {len(different) - _MOST_SHOWN} more.", file=sys.stderr)
