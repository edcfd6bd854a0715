"""From parts to pixels: one object after the other onto a canvas, with the maps of what is visible where."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from miniature.shapes import Part

SCALE = 2  # drawn at twice the size, then averaged down: smooth edges without a second rasteriser
_SUBPIXEL = 4  # bits of sub-pixel precision in OpenCV's fixed-point coordinates


def _fixed(contours: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [np.round((c * SCALE - 0.5) * (1 << _SUBPIXEL)).astype(np.int32) for c in contours]


@dataclass
class Canvas:
    """A picture being painted.

    Attributes:
        image: (SCALE H, SCALE W, 3) uint8 RGB.
        objects: (SCALE H, SCALE W) uint8, 0 = background, k = the k-th object painted (nameless blobs count).
        parts: (SCALE H, SCALE W) uint8, 0 = background, k = the k-th part painted, over all objects.
        part_of: for each part painted, (object number, group name); part k is `part_of[k - 1]`.
    """

    image: np.ndarray
    objects: np.ndarray = field(init=False)
    parts: np.ndarray = field(init=False)
    part_of: list[tuple[int, str]] = field(default_factory=list)
    object_count: int = 0

    def __post_init__(self):
        self.objects = np.zeros(self.image.shape[:2], np.uint8)
        self.parts = np.zeros(self.image.shape[:2], np.uint8)

    @classmethod
    def blank(cls, background: np.ndarray) -> "Canvas":
        """A canvas over `background`, (H, W, 3) uint8 RGB."""
        height, width = background.shape[:2]
        return cls(cv2.resize(background, (width * SCALE, height * SCALE), interpolation=cv2.INTER_LINEAR))

    def paint(self, drawing: Sequence[Part], outline: float = 0.0) -> int:
        """Paint a drawing whose contours are in pixels of the final picture; returns the object's number.

        Args:
            drawing: parts, back to front, coordinates in final pixels (x, y).
            outline: width of a dark line around each part, in final pixels; 0 for none.
        """
        self.object_count += 1
        for part in drawing:
            contours = _fixed(part.contours)
            color = tuple(round(255 * c) for c in part.color)
            if part.detail:
                self._paint_detail(contours, color)
                continue
            self.part_of.append((self.object_count, part.group))
            cv2.fillPoly(self.image, contours, color, shift=_SUBPIXEL)
            cv2.fillPoly(self.objects, contours, self.object_count, shift=_SUBPIXEL)
            cv2.fillPoly(self.parts, contours, len(self.part_of), shift=_SUBPIXEL)
            if outline > 0:
                line = tuple(c // 3 for c in color)
                cv2.polylines(self.image, contours, True, line, max(1, round(outline * SCALE)), shift=_SUBPIXEL)
        return self.object_count

    def _paint_detail(self, contours: list[np.ndarray], color: tuple[int, int, int]) -> None:
        """Fill only where the last painted part is still on top."""
        points = np.concatenate(contours) >> _SUBPIXEL
        (x0, y0), (x1, y1) = np.maximum(points.min(0) - 1, 0), points.max(0) + 2
        window = self.parts[y0:y1, x0:x1]
        if window.size == 0:
            return
        mark = np.zeros(window.shape, np.uint8)
        offset = (-int(x0) << _SUBPIXEL, -int(y0) << _SUBPIXEL)
        cv2.fillPoly(mark, [c + np.int32(offset) for c in contours], 1, shift=_SUBPIXEL)
        self.image[y0:y1, x0:x1][(mark > 0) & (window == len(self.part_of))] = color

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(image (H, W, 3) uint8, objects (H, W) uint8, parts (H, W) uint8) at the final size."""
        height, width = (s // SCALE for s in self.objects.shape)
        image = cv2.resize(self.image, (width, height), interpolation=cv2.INTER_AREA)
        return image, self.objects[::SCALE, ::SCALE].copy(), self.parts[::SCALE, ::SCALE].copy()
