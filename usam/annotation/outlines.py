"""Outlines of masks as polygons that give the same masks again: COCO's, and the single one that YOLO knows."""

from collections.abc import Sequence

import cv2
import numpy as np
from scipy.spatial import KDTree

COARSE, THICK = 1024, 64  # pixels of an image and of a mask in it, from which on outlines are not exact


def polygons(mask: np.ndarray) -> list[np.ndarray]:
    """Outlines of the parts of a mask (H, W) bool as COCO has them, (n, 2) float of (x, y) from the image's corner.

    They run from a pixel's upper left corner to the middle of the last one: pycocotools fills exactly this mask.
    A hole is cut open: a way leads from the outline to it and back.
    """
    _, _, *sides = cv2.boundingRect(mask.astype(np.uint8))
    if max(mask.shape) >= COARSE and min(sides) >= THICK:  # a pixel at the border does not count
        rings = _rings(mask, 1)
        if all(_area(ring) for ring, _ in rings):  # a speck has none: pycocotools wants one
            return [_opened(ring, holes) + 0.25 for ring, holes in rings]
    return [_opened(ring, holes) / 2 for ring, holes in _rings(mask, 2)]


def one_polygon(mask: np.ndarray) -> np.ndarray:
    """The outline of a mask (H, W) bool as YOLO has it: one ring (n, 2), n >= 3, of pixels (x, y) that are in the mask.

    OpenCV's fillPoly draws it, border included. Parts and holes hang together by ways there and back.
    """
    parts = [_opened(ring, holes) for ring, holes in _rings(mask, 1)]
    largest = max(range(len(parts)), key=lambda k: _area(parts[k]))
    whole = _opened(parts.pop(largest), parts)
    return np.concatenate([whole, whole[-1:].repeat(max(3 - len(whole), 0), 0)])


def _rings(mask: np.ndarray, scale: int) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """The outer border (n, 2) float of each part of a mask that is enlarged so much, and the borders of its holes.

    Where an image is so large that a pixel is finer than SAM's masks, they have fewer points.
    """
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    tolerance = scale * min(max(mask.shape) // COARSE / 2, min(width, height) / 20)
    inside = mask[y : y + height, x : x + width].astype(np.uint8).repeat(scale, 0).repeat(scale, 1)
    offset = (scale * x, scale * y)
    contours, tree = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=offset)
    if tolerance:
        simple = [cv2.approxPolyDP(ring, tolerance, True) for ring in contours]
        contours = [few if _area(few) else ring for few, ring in zip(simple, contours, strict=True)]
    found = {k: (ring[:, 0].astype(float), []) for k, ring in enumerate(contours) if tree[0, k, 3] < 0}
    for ring, parent in zip(contours, tree[0, :, 3].tolist(), strict=True):
        if parent >= 0:
            found[parent][1].append(ring[:, 0].astype(float))
    return list(found.values())


def _area(ring: np.ndarray) -> float:
    return cv2.contourArea(ring.astype(np.int32))


def _opened(ring: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """One ring (n, 2) that visits others, the nearest to what it has visited first: then no way to a ring crosses one
    that it does not lead to."""
    if not others:
        return ring
    points = np.concatenate([ring, *others])
    ends = np.cumsum([len(ring), *map(len, others)])
    of = np.repeat(range(len(ends)), np.diff(ends, prepend=0))  # the ring of each point
    after = np.arange(1, len(points) + 1)  # the next point on its ring
    after[ends - 1] = np.concatenate([[0], ends[:-1]])
    after, copies = after.tolist(), []
    near, place = np.full(len(points), np.inf), np.zeros(len(points), int)  # distance to a visited point, and which
    visited, newest = of == 0, 0
    while not visited.all():
        rest, start = np.flatnonzero(~visited), int(ends[newest] - np.count_nonzero(of == newest))
        distance, nearest = KDTree(points[start : ends[newest]]).query(points[rest])
        closer = distance < near[rest]
        near[rest[closer]], place[rest[closer]] = distance[closer], start + nearest[closer]
        there = int(rest[near[rest].argmin()])
        here, newest = int(place[there]), int(of[there])
        before = there
        while after[before] != there:
            before = after[before]
        # here -> there -> its ring -> there again -> here again -> on
        copies += [there, here]
        after[before] = len(after)
        after += [len(after) + 1, after[here]]
        after[here] = there
        visited |= of == newest
    way, at = [], 0
    names = [*range(len(points)), *copies]
    while not way or at != 0:
        way.append(names[at])
        at = after[at]
    return points[[*way]]
