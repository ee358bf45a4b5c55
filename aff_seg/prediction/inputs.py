"""From what a user names on the command line to files and names for what is written."""

import glob
import os
from collections import Counter
from collections.abc import Sequence

from aff_seg.prediction import images, video

SUFFIXES = (*images.SUFFIXES, *video.SUFFIXES)


def find_pictures(inputs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Images and videos to read.

    Args:
        inputs: each a file, taken whatever its suffix; a folder, of which images and videos are
            taken, without those of its subfolders; or a glob pattern, ``**`` included, whose
            matches are treated as if they were given one by one, without folders that hold
            nothing of the kind.

    Returns:
        paths, each once, in the order given, those of a folder or pattern sorted; and one
        sentence for every input that gave nothing.
    """
    paths: dict[str, str] = {}
    problems = []
    for name in inputs:
        is_pattern = not os.path.lexists(name)
        found, refused = [], []
        for match in sorted(glob.glob(name, recursive=True)) if is_pattern else [name]:
            try:
                found += _pictures_of(match) if os.path.isdir(match) else [match]
            except OSError as error:
                refused.append(f"{match} cannot be read: {error.strerror}.")
        if not found and not refused:
            refused.append(_why_nothing(name, is_pattern))
        problems += refused
        for path in found:
            paths.setdefault(os.path.abspath(path), path)
    return list(paths.values()), problems


def _why_nothing(name: str, is_pattern: bool) -> str:
    if is_pattern:
        return f"{name} does not exist, and no image or video matches it as a pattern."
    below = os.path.join(name, "**", "*.png")
    return f"{name} is a folder without images or videos; give '{below}' to look deeper."


def _pictures_of(folder: str) -> list[str]:
    names = sorted(os.listdir(folder))
    names = [n for n in names if n.lower().endswith(SUFFIXES) and not n.startswith(".")]
    paths = [os.path.join(folder, n) for n in names]
    return [path for path in paths if not os.path.isdir(path)]


def is_video(path: str) -> bool:
    """Whether a file is a video, by its name."""
    return path.lower().endswith(video.SUFFIXES)


def output_names(paths: Sequence[str]) -> list[str]:
    """A name for each file to write its results under, no two equal.

    It is the stem of the file. Where files share a stem, each has the name of its folder before
    it, ``<folder>_<stem>``, and where that is not enough a number after it. Upper and lower case
    count as equal, as they do on some file systems.

    Args:
        paths: different files.
    """
    stems = [_stem(path) for path in paths]
    frequency = Counter(stem.casefold() for stem in stems)
    taken = {stem for stem, count in frequency.items() if count == 1}
    names = []
    for path, stem in zip(paths, stems, strict=True):
        if frequency[stem.casefold()] > 1:
            folder = os.path.basename(os.path.dirname(os.path.abspath(path)))
            stem = _free(f"{folder}_{stem}", taken)
            taken.add(stem.casefold())
        names.append(stem)
    return names


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _free(name: str, taken: set[str]) -> str:
    """``name``, or the first of ``name_2``, ``name_3``, ... that is not taken."""
    candidate, number = name, 1
    while candidate.casefold() in taken:
        number += 1
        candidate = f"{name}_{number}"
    return candidate
