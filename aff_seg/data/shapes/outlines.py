"""Polygons along pixel borders, which pycocotools turns back into exactly the same mask."""

import cv2
import numpy as np


def mask_to_polygons(mask: np.ndarray) -> list[list[int]]:
    """Outline a mask for COCO's ``segmentation`` field.

    Args:
        mask: bool (H, W). Parts with holes are cut apart until none has one, for the
            format has no holes.

    Returns:
        one flat list x0, y0, x1, y1, ... per part, in pixels, where (0, 0) is the upper
        left corner of the first pixel.
    """
    # Doubled, every pixel border is met by border pixels whose places tell its corners.
    doubled = np.kron(mask.astype(np.uint8), np.ones((2, 2), dtype=np.uint8))
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return []
    holes = [c for c, links in zip(contours, hierarchy[0], strict=True) if links[3] >= 0]
    if holes:
        cut = int(holes[0][:, 0, 0].mean()) // 2
        left, right = mask.copy(), mask.copy()
        left[:, cut:] = False
        right[:, :cut] = False
        return mask_to_polygons(left) + mask_to_polygons(right)
    return [_corners((contour[:, 0] + 1) // 2).ravel().tolist() for contour in contours]


def _corners(points: np.ndarray) -> np.ndarray:
    """Drop repeated points and those in the middle of a straight run."""
    points = points[np.any(points != np.roll(points, 1, axis=0), axis=1)]
    before = points - np.roll(points, 1, axis=0)
    after = np.roll(points, -1, axis=0) - points
    turns = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    back = (before * after).sum(axis=1) < 0
    return points[turns | back]
