"""Masks and their embeddings: the point grid, run lengths, IoU, and resizing to an image (paper 3.3)."""

import dataclasses
import math
from dataclasses import dataclass

import cv2
import numpy as np
from pycocotools import mask as rle_codec

from usam.errors import UserError


@dataclass(frozen=True)
class MaskEmbeddings:
    """SAM's answer on one image, one entry for each of the d grid points.

    Attributes:
        tokens: (d, 4, 256) float16, the mask tokens [single, multi-1, multi-2, multi-3]; flattened they are the
            paper's m_i of d x 1024.
        masks: d binary masks as COCO RLE without padding, of the image's size (scaled down to 1024 pixels if it is
            larger), or of the decoder's low resolution (`sam.mask_size`); none for training images.
        iou: (d,) float32, SAM's own prediction of each mask's IoU.
        image_size: (H, W) of the image in pixels.
        extent: (height, width) of the image in pixels of the masks; at low resolution they need not be whole numbers.
        points: (d, 2) float32 of (x, y) in the image's pixels: the prompts.
    """

    tokens: np.ndarray
    masks: list[dict]
    iou: np.ndarray
    image_size: tuple[int, int]
    extent: tuple[float, float]
    points: np.ndarray

    def at(self, points: np.ndarray) -> "MaskEmbeddings":
        """The same image with these grid points (n,) alone."""
        masks = [self.masks[j] for j in points] if self.masks else []
        some = dict(tokens=self.tokens[points], masks=masks, iou=self.iou[points], points=self.points[points])
        return dataclasses.replace(self, **some)

    def on_grid(self, side: int | None) -> "MaskEmbeddings":
        """With only the points that are nearest to those of a coarser grid; with all of them for None."""
        return self if side is None else self.at(coarser(math.isqrt(len(self.points)), side))


def point_grid(image_size: tuple[int, int], points_per_side: int) -> np.ndarray:
    """Centres of an even grid: (points_per_side², 2) float32 of (x, y) in pixels, row by row.

    Point (i, j) lies at ((i + 1/2) W / n, (j + 1/2) H / n).
    """
    height, width = image_size
    steps = (np.arange(points_per_side, dtype=np.float32) + 0.5) / points_per_side
    x, y = np.meshgrid(steps * width, steps * height)
    return np.stack([x.ravel(), y.ravel()], 1)


def coarser(points_per_side: int, wanted: int) -> np.ndarray:
    """Which points of a grid are nearest to those of a coarser one: (wanted²,) indices, each once.

    Raises:
        UserError: the other grid is the finer one.
    """
    if wanted > points_per_side:
        raise UserError(f"grid: {wanted} points a side are more than the {points_per_side} of sam.points_per_side")
    nearest = ((np.arange(wanted) + 0.5) * points_per_side / wanted).astype(int)  # cells of the fine grid
    return (nearest[:, None] * points_per_side + nearest).ravel()


def masks_to_rle(masks: np.ndarray) -> list[dict]:
    """Bool masks (N, H, W) as N COCO RLEs `{"size": [H, W], "counts": bytes}`."""
    return rle_codec.encode(np.asfortranarray(masks.transpose(1, 2, 0), np.uint8)) if len(masks) else []


def rle_to_masks(rles: list[dict]) -> np.ndarray:
    """COCO RLE of one size as bool masks (N, H, W)."""
    return rle_codec.decode(rles).transpose(2, 0, 1).astype(bool) if rles else np.zeros((0, 0, 0), bool)


def to_image_size(masks: np.ndarray, extent: tuple[float, float], image_size: tuple[int, int]) -> np.ndarray:
    """Masks at the image's own size: as they are if they have it, else bilinear, cut at one half.

    Args:
        masks: (N, h, w) bool.
        extent: (height, width) of the image on them.
        image_size: (H, W) wanted.

    Returns:
        (N, H, W) bool.
    """
    if masks.shape[1:] == tuple(image_size) == tuple(extent):
        return masks
    (height, width), (ys, xs) = image_size, (extent[0] / image_size[0], extent[1] / image_size[1])
    back = np.float32([[xs, 0, xs / 2 - 0.5], [0, ys, ys / 2 - 0.5]])  # centre of pixel i lies at (i + 1/2) scale - 1/2
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    large = [
        cv2.warpAffine(m.astype(np.uint8) * 255, back, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        for m in masks
    ]
    return np.stack(large) > 127 if large else np.zeros((0, *image_size), bool)


def rle_iou(rle: dict, others: list[dict]) -> np.ndarray:
    """IoU of a COCO RLE with each of `others`, of the same size: (n,) float64, 0 where both are empty."""
    return rle_codec.iou(others, [rle], [0])[:, 0] if others else np.zeros(0)


def mask_iou(masks: np.ndarray, others: np.ndarray | None = None) -> np.ndarray:
    """IoU of bool masks (n, h, w) and (m, h, w), by default with each other: (n, m) float32, 0 where both are empty."""
    one = masks.reshape(len(masks), math.prod(masks.shape[1:])).astype(np.float32)
    other = one if others is None else others.reshape(len(others), one.shape[1]).astype(np.float32)
    overlap = one @ other.T
    return overlap / np.maximum(one.sum(1)[:, None] + other.sum(1) - overlap, 1)
