"""Outlines of masks as polygons that give the same masks again: COCO's, and the single one that YOLO allows."""

from collections.abc import Sequence

import cv2
import numpy as np
from scipy.spatial import KDTree

COARSE, THICK = 1024, 64  # pixels of an image, and of a mask in it, from which on outlines are not exact


def polygons(mask: np.ndarray) -> list[np.ndarray]:
    """Outlines of the parts of a mask (H, W) bool for COCO, each (n, 2) float of (x, y) from the image's corner.

    They run from a pixel's upper left corner to the middle of the last one: pycocotools fills exactly this mask.
    A hole is cut open: a path leads from the outline to it and back.
    """
    _, _, *sides = cv2.boundingRect(mask.astype(np.uint8))
    if max(mask.shape) >= COARSE and min(sides) >= THICK:  # a pixel at the border does not matter
        rings = _rings(mask, 1)
        if all(_area(ring) for ring, _ in rings):  # pycocotools needs an area; a single pixel's ring has none
            return [_connected(ring, holes) + 0.25 for ring, holes in rings]
    return [_connected(ring, holes) / 2 for ring, holes in _rings(mask, 2)]


def one_polygon(mask: np.ndarray) -> np.ndarray:
    """The outline of a mask (H, W) bool for YOLO: one ring (n, 2), n >= 3, of pixels (x, y) that are in the mask.

    OpenCV's fillPoly draws the mask, its border included. Paths there and back connect parts and holes.
    """
    parts = [_connected(ring, holes) for ring, holes in _rings(mask, 1)]
    largest = parts.pop(int(np.argmax([_area(part) for part in parts])))
    ring = _connected(largest, parts)
    return np.concatenate([ring, ring[-1:].repeat(max(3 - len(ring), 0), 0)])


def _rings(mask: np.ndarray, scale: int) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Border (n, 2) float of each part of a mask, and the borders of its holes, in pixels of the mask times `scale`.

    In images so large that a pixel is finer than SAM's masks, they have fewer points.
    """
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    tolerance = scale * min(max(mask.shape) // COARSE / 2, min(width, height) / 20)
    inside = mask[y : y + height, x : x + width].astype(np.uint8).repeat(scale, 0).repeat(scale, 1)
    offset = (scale * x, scale * y)
    contours, tree = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=offset)
    if tolerance:
        simple = [cv2.approxPolyDP(ring, tolerance, True) for ring in contours]
        contours = [few if _area(few) else ring for few, ring in zip(simple, contours, strict=True)]
    parents, rings = tree[0, :, 3], [ring[:, 0].astype(float) for ring in contours]
    return [(rings[k], [rings[j] for j in np.flatnonzero(parents == k)]) for k in np.flatnonzero(parents < 0)]


def _area(ring: np.ndarray) -> float:
    return cv2.contourArea(ring.astype(np.int32))


def _connected(ring: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """One ring (n, 2) that visits other rings, always the nearest to those it has visited: paths cross no ring."""
    rings = [ring, *others]
    points, owner = np.concatenate(rings), np.repeat(range(len(rings)), [len(one) for one in rings])
    path, newest = list(range(len(ring))), 0  # indices of points; the ring that was visited last
    distance, origin = np.full(len(points), np.inf), np.zeros(len(points), int)  # from the nearest visited point
    rest = np.flatnonzero(owner)
    while len(rest):
        visited = np.flatnonzero(owner == newest)
        to_newest, nearest = KDTree(points[visited]).query(points[rest])
        closer = to_newest < distance[rest]
        distance[rest[closer]], origin[rest[closer]] = to_newest[closer], visited[nearest[closer]]
        entry = rest[distance[rest].argmin()]
        newest = owner[entry]
        turn = np.flatnonzero(owner == newest)
        turn = np.roll(turn, turn[0] - entry)  # begins at the entry
        at = path.index(origin[entry]) + 1
        path[at:at] = [*turn, entry, origin[entry]]
        rest = rest[owner[rest] != newest]
    return points[path]
