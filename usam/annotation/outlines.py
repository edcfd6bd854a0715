"""Outlines of masks as polygons that give the same masks again: COCO's, and the single one that YOLO allows."""

from collections import defaultdict
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
    parents, rings = tree[0, :, 3].tolist(), [ring[:, 0].astype(float) for ring in contours]
    holes = defaultdict(list)
    for parent, ring in zip(parents, rings, strict=True):
        holes[parent].append(ring)
    return [(ring, holes[k]) for k, ring in enumerate(rings) if parents[k] < 0]


def _area(ring: np.ndarray) -> float:
    return cv2.contourArea(ring.astype(np.int32))


def _connected(ring: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """One ring (n, 2) that visits other rings, always the nearest to those it has visited: paths cross no ring."""
    rings = [ring, *others]
    points, ends = np.concatenate(rings), np.cumsum([len(one) for one in rings])
    owner = np.repeat(range(len(rings)), [len(one) for one in rings])  # the ring of each point
    entries = {0: 0}  # ring -> its point at which it is entered, in the order of the visits
    exits = defaultdict(list)  # point -> rings that are visited from it, the latest first
    near, place = np.full(len(points), np.inf), np.zeros(len(points), int)  # distance to the nearest visited point
    rest, newest = np.flatnonzero(owner), 0
    while len(rest):
        start = int(ends[newest]) - len(rings[newest])
        distance, nearest = KDTree(rings[newest]).query(points[rest])
        closer = distance < near[rest]
        near[rest[closer]], place[rest[closer]] = distance[closer], start + nearest[closer]
        entry = int(rest[near[rest].argmin()])
        newest = int(owner[entry])
        entries[newest] = entry
        exits[int(place[entry])].insert(0, newest)
        rest = rest[owner[rest] != newest]
    paths: dict[int, list[int]] = {}
    for visited, entry in reversed(entries.items()):  # rings that are visited from a ring come after it
        start, end = int(ends[visited]) - len(rings[visited]), int(ends[visited])
        paths[visited] = []
        for point in (*range(entry, end), *range(start, entry)):
            paths[visited].append(point)
            for other in exits[point]:
                paths[visited] += [*paths.pop(other), entries[other], point]
    return points[paths[0]]
