"""What pictures, data sets and embeddings hold, as tables and numbers, before anything is learnt from them."""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import pandas as pd
from pycocotools import mask as rle_codec
from tqdm import tqdm

from usam import runs, sam
from usam.datasets import Dataset, Example
from usam.evaluation import truth_masks
from usam.head import MaskClassifier
from usam.inference import label_masks, probabilities
from usam.profiles import InferenceConfig
from usam.sam import MaskEmbeddings
from usam.store import EmbeddingStore

KINDS = ("whole", "part", "mixed", "background")


def objects(dataset: Dataset) -> pd.DataFrame:
    """One row an object of the ground truth.

    Returns:
        Columns picture (its place in the data set), class, share (of the picture's area, in [0, 1]), crowd (bool).
    """
    rows = []
    for i in tqdm(range(len(dataset)), desc=f"objects of {dataset.name}", unit="image", leave=False):
        example = dataset[i]
        for one in example.instances:
            share = int(rle_codec.area(one.mask)) / example.semantic.size
            rows.append((i, dataset.class_names[one.label], share, one.crowd))
    return pd.DataFrame(rows, columns=["picture", "class", "share", "crowd"])


def looks(images: Iterable[np.ndarray]) -> pd.DataFrame:
    """One row an image (H, W, 3) uint8 RGB: mean lightness, its standard deviation, mean saturation, all in [0, 1].

    Returns:
        Columns brightness, contrast, saturation.
    """
    rows = []
    for image in images:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) / 255
        saturation = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 1] / 255
        rows.append((grey.mean(), grey.std(), saturation.mean()))
    return pd.DataFrame(rows, columns=["brightness", "contrast", "saturation"])


def average(images: Iterable[np.ndarray], side: int = 64) -> np.ndarray:
    """The mean of images (H, W, 3) uint8 of any sizes, squeezed to (side, side, 3) uint8."""
    small = [cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for image in images]
    return np.mean(small, axis=0).round().astype(np.uint8)


def central_points(points_per_side: int) -> np.ndarray:
    """Indices of the middle points of a grid, 4 x 4 of an even one (3 x 3 of an odd one): in `sam.point_grid`'s order.

    A single-object image has its object there, most of the time.
    """
    near = np.abs(np.arange(points_per_side) - (points_per_side - 1) / 2) < 2  # (n,)
    return np.flatnonzero(np.outer(near, near))


def mask_kinds(example: Example, embeddings: MaskEmbeddings) -> np.ndarray:
    """What each of SAM's masks covers, by the ground truth: (d,) of `KINDS`.

    whole: IoU with an object is at least 0.5. part: four fifths of the mask or more lie on one object. background: one
    fifth or less lies on any object (an empty mask, too). mixed: all else.
    """
    true, _ = truth_masks(example)  # (n, H, W)
    ours = sam.to_image_size(sam.decode(embeddings.masks), embeddings.extent, embeddings.image_size)  # (d, H, W)
    if not len(true):
        return np.full(len(ours), "background", dtype="<U10")
    flat, truth = (m.reshape(len(m), -1).astype(np.float32) for m in (ours, true))
    overlap, area = flat @ truth.T, flat.sum(1)  # (d, n), (d,)
    iou = (overlap / np.maximum(area[:, None] + truth.sum(1) - overlap, 1)).max(1)
    on_one, on_any = (share / np.maximum(area, 1) for share in (overlap.max(1), overlap.sum(1)))
    return np.select([iou >= 0.5, on_one >= 0.8, on_any > 0.2], KINDS[:3], KINDS[3])


def wholes(
    dataset: Dataset, store: EmbeddingStore, heads: Sequence[MaskClassifier], config: InferenceConfig
) -> list[np.ndarray]:
    """How many masks cover a whole object, image by image: of all masks of SAM, and of those that each head keeps.

    Returns:
        First for SAM, then for each of `heads`, (N, 2) int: masks that are "whole" (see `mask_kinds`), and masks.
    """

    def one(i: int) -> list[tuple[int, int]]:
        found = store[i]
        whole = mask_kinds(dataset[i], found) == "whole"
        kept = [label_masks(probabilities(head, found.tokens), found, config).index for head in heads]
        return [(whole[index].sum(), len(index)) for index in (np.arange(len(whole)), *kept)]

    return list(np.array(list(runs.over_images(one, len(dataset), "whole objects"))).swapaxes(0, 1))


def neighbour_agreement(tokens: np.ndarray, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Do tokens that lie close together belong to the same class? No training, no picture that could fool the eye.

    Args:
        tokens: (M, dim).
        images: (M,) from which image each one is; neighbours within an image do not count.
        labels: (M,) class of that image.

    Returns:
        Share of tokens whose nearest neighbour has the same label, and the same for a random neighbour.
    """
    scaled = tokens.astype(np.float32)
    scaled = (scaled - scaled.mean(0)) / np.maximum(scaled.std(0), 1e-4)
    squares = (scaled**2).sum(1)
    distance = squares[:, None] + squares - 2 * scaled @ scaled.T  # (M, M)
    other, same = images[:, None] != images, labels[:, None] == labels
    nearest = np.where(other, distance, np.inf).argmin(1)
    chance = (same & other).sum(1) / np.maximum(other.sum(1), 1)
    return float(same[np.arange(len(same)), nearest].mean()), float(chance.mean())
