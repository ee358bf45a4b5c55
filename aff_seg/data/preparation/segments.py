"""Segments of a panoptic image: their measures, and whether image and listing agree."""

from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np
from panopticapi.utils import rgb2id
from scipy import ndimage

from aff_seg.data.preparation.files import read_colours, require_size


def distinct(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values of a label image, ascending, and (H, W) places of the pixels' values among them.

    As ``np.unique`` does, but on runs of equal pixels, which are far fewer.
    """
    flat = ids.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    values, places = np.unique(flat[starts], return_inverse=True)
    return values, np.repeat(places, np.diff(starts, append=flat.size)).reshape(ids.shape)


def measure(ids: np.ndarray) -> dict[int, dict]:
    """Area and box of each value but 0.

    Args:
        ids: integers (H, W).

    Returns:
        {id: {"area": pixels, "bbox": [left, top, width, height]}}, ids ascending.
    """
    values, places = distinct(ids)
    areas = np.bincount(places.ravel())
    measures = {}
    for value, area, box in zip(values, areas, ndimage.find_objects(places + 1), strict=True):
        if value != 0:
            rows, columns = box
            bbox = [columns.start, rows.start, columns.stop - columns.start]
            measures[int(value)] = {
                "area": int(area),
                "bbox": [*bbox, rows.stop - rows.start],
            }
    return measures


def segment_faults(
    listing: Path,
    path: Path,
    annotation: dict,
    shown: Collection[int],
    categories: Collection[int],
    may_be_hidden: Collection[int] = (),
) -> list[str]:
    """Say where the segments of an image and of its annotation differ.

    Args:
        listing: file of the annotation.
        path: of the panoptic image.
        annotation: with ``segments_info``.
        shown: ids in the image, without 0.
        categories: known ids of categories.
        may_be_hidden: categories whose segments may be covered by others.
    """
    segments = annotation["segments_info"]
    faults = []
    for segment_id, count in Counter(segment["id"] for segment in segments).items():
        if count > 1:
            faults.append(f"{listing} lists segment {segment_id} of {path.name} twice.")
    for segment in segments:
        if segment["category_id"] not in categories:
            faults.append(
                f"{listing} gives segment {segment['id']} of {path.name} the category "
                f"{segment['category_id']}, which is unknown."
            )
    listed = {segment["id"] for segment in segments}
    hidden = {s["id"] for s in segments if s["category_id"] in may_be_hidden}
    for segment_id in sorted(set(shown) - listed):
        faults.append(f"{path} shows segment {segment_id}, which {listing} does not list.")
    for segment_id in sorted(listed - set(shown) - hidden):
        faults.append(f"{path} does not show segment {segment_id}, which {listing} lists.")
    return faults


def read_segment_ids(path: Path, picture: Path) -> np.ndarray:
    """Ids of a panoptic image, int32 (H, W); 0 is no segment."""
    colours = read_colours(path)
    require_size(path, colours.shape, picture)
    return rgb2id(colours)


def category_map(ids: np.ndarray, annotation: dict) -> np.ndarray:
    """Category of each pixel, int32 (H, W); -1 where there is no segment."""
    categories = {s["id"]: s["category_id"] for s in annotation["segments_info"]}
    values, places = distinct(ids)
    table = np.array([categories.get(int(value), -1) for value in values], dtype=np.int32)
    return table[places]
