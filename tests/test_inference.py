"""Threshold, non-maximum suppression and painting: by hand, and against torchvision and pycocotools."""

import warnings

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms
from torchvision.ops import nms as box_nms

from usam.annotation.export import expected_error
from usam.config import InferenceConfig
from usam.method.head import MaskClassifier
from usam.method.inference import LabelledMasks, choose, label_masks, nms, probabilities
from usam.method.masks import MaskEmbeddings, mask_iou, masks_to_rle, rle_iou

# Four masks of a row of pixels: 0 and 1 overlap by 6 of 10, 1 and 2 by 4 of 10, 0 and 2 not at all, 3 is alone.
STRIPES = np.zeros((4, 1, 12), bool)
for stripe, (first, end) in zip(STRIPES, ((0, 6), (0, 10), (6, 10), (10, 12)), strict=True):
    stripe[0, first:end] = True


def run(scores: list[float], labels: list[int], limit: float = 0.4, per_class: bool = False) -> list[int]:
    return nms(masks_to_rle(STRIPES), np.array(scores), np.array(labels), limit, per_class).tolist()


def test_nms_by_hand():
    assert run([0.9, 0.8, 0.7, 0.6], [0, 0, 0, 0]) == [0, 2, 3]  # 0 removes 1; 2 was only in reach of 1
    assert run([0.7, 0.8, 0.6, 0.9], [0, 0, 0, 0]) == [3, 1]  # 1 removes 0, and 2 at exactly the limit
    assert run([0.7, 0.8, 0.6, 0.9], [0, 0, 0, 0], 0.41) == [3, 1, 2]
    assert run([0.7, 0.8, 0.6, 0.9], [0, 1, 2, 3]) == [3, 1]  # other classes count
    assert run([0.7, 0.8, 0.6, 0.9], [0, 1, 1, 3], per_class=True) == [3, 1, 0]  # only 2 has the class of 1


def test_nms_gives_ties_to_the_lower_index():
    assert run([0.8, 0.8, 0.8, 0.8], [0, 0, 0, 0]) == [0, 2, 3]


def test_nms_of_nothing():
    none = nms([], np.zeros(0), np.zeros(0, int), 0.5, False)
    assert none.shape == (0,) and none.dtype.kind == "i"


@pytest.mark.parametrize("seed", range(5))
def test_nms_against_torchvision_on_boxes(seed):
    rng = np.random.default_rng(seed)
    corners, sides = rng.integers(0, 40, (60, 2)), rng.integers(8, 20, (60, 2))
    masks = np.zeros((60, 64, 64), bool)
    for mask, (x, y), (w, h) in zip(masks, corners, sides, strict=True):
        mask[y : y + h, x : x + w] = True
    boxes = torch.tensor(np.hstack([corners, corners + sides]), dtype=torch.float32)
    scores, labels = rng.permutation(60).astype(np.float32) / 60, rng.integers(0, 3, 60)
    rles, limit = masks_to_rle(masks), 0.4567  # no ratio of such small areas: here "or more" and "more" agree
    theirs = box_nms(boxes, torch.tensor(scores), limit)
    assert nms(rles, scores, labels, limit, False).tolist() == theirs.tolist()
    theirs = batched_nms(boxes, torch.tensor(scores), torch.tensor(labels), limit)
    assert nms(rles, scores, labels, limit, True).tolist() == theirs.tolist()


def test_iou_of_masks_and_of_run_lengths_by_counting():
    rng = np.random.default_rng(0)
    masks = rng.random((12, 9, 14)) < rng.random((12, 1, 1))
    masks[3] = False
    counted = [[(a & b).sum() / max((a | b).sum(), 1) for b in masks] for a in masks]
    np.testing.assert_allclose(mask_iou(masks), counted, atol=1e-6)
    rles = masks_to_rle(masks)
    np.testing.assert_allclose([rle_iou(one, rles) for one in rles], counted, atol=1e-12)
    assert mask_iou(masks[:0]).shape == (0, 0) and rle_iou(rles[0], []).shape == (0,)


def block(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((8, 12), bool)
    mask[rows, columns] = True
    return mask


LEFT, LEFT_TOO = block(slice(0, 8), slice(0, 4)), block(slice(0, 8), slice(0, 5))
RIGHT, DOT, NOTHING = block(slice(0, 8), slice(8, 12)), block(slice(2, 4), slice(2, 4)), np.zeros((8, 12), bool)


def embeddings(*masks: np.ndarray) -> MaskEmbeddings:
    """Masks of an image of 16 x 24 pixels at half its size."""
    d = len(masks)
    tokens, iou = np.zeros((d, 4, 256), np.float16), np.ones(d, np.float32)
    return MaskEmbeddings(tokens, masks_to_rle(np.stack(masks)), iou, (16, 24), (8.0, 12.0), np.zeros((len(masks), 2)))


def chances(*rows: tuple[float, float, float]) -> np.ndarray:
    return np.array(rows, np.float32)


def test_label_masks_by_hand():
    table = chances((0.1, 0.8, 0.1), (0.9, 0.1, 0), (0, 0.05, 0.95), (0.4, 0.3, 0.3), (0, 1, 0))
    found = label_masks(table, embeddings(LEFT, LEFT_TOO, RIGHT, DOT, NOTHING), InferenceConfig())
    # best first: RIGHT; then LEFT_TOO, which removes LEFT (IoU 32 / 40); DOT is below 0.7; an empty mask is none
    assert found.index.tolist() == [2, 1] and found.labels.tolist() == [2, 0]
    np.testing.assert_array_equal(found.scores, np.float32([0.95, 0.9]))
    np.testing.assert_array_equal(found.masks, np.kron(np.stack([RIGHT, LEFT_TOO]), np.ones((2, 2), bool)))
    per_class = label_masks(table, embeddings(LEFT, LEFT_TOO, RIGHT, DOT, NOTHING), InferenceConfig(nms_per_class=True))
    assert per_class.index.tolist() == [2, 1, 0]


@pytest.mark.parametrize("threshold", [0.7, 0.3, 0.35, 0.9])
def test_threshold_is_inclusive(threshold):
    at, below = np.float32(threshold), np.nextafter(np.float32(threshold), np.float32(0))
    config = InferenceConfig(score_threshold=threshold)
    found = label_masks(chances((at, 0, 0), (0, below, 0)), embeddings(LEFT, RIGHT), config)
    assert found.index.tolist() == [0]


def test_no_mask_above_the_threshold_leaves_background():
    found = label_masks(chances((0.4, 0.3, 0.3), (0.4, 0.3, 0.3)), embeddings(LEFT, RIGHT), InferenceConfig())
    assert len(found.index) == len(found.labels) == len(found.scores) == 0 and found.masks.shape == (0, 16, 24)
    painted = found.semantic_map()
    assert painted.shape == (16, 24) and painted.dtype == np.uint8 and not painted.any()


def test_classes_beyond_the_users_suppress_and_go():
    """LEFT_TOO is of class 2, which is none of the two that were asked for; it has removed LEFT before it goes."""
    table = chances((0.1, 0.8, 0.1), (0, 0.1, 0.9), (0.95, 0.05, 0))
    found = label_masks(table, embeddings(LEFT, LEFT_TOO, RIGHT), InferenceConfig(), classes=2)
    assert found.index.tolist() == [2] and found.labels.tolist() == [0]


def test_smallest_counts_pixels_of_the_image():
    """The image has 16 x 24 pixels, the masks 8 x 12: DOT's 2 x 2 are 16 pixels of the image."""
    table = chances((0.9, 0.1, 0), (0, 0.8, 0.2))
    for smallest, expected in ((16, [0, 1]), (17, [0]), (129, [])):
        found = label_masks(table, embeddings(LEFT, DOT), InferenceConfig(smallest=smallest))
        assert found.index.tolist() == expected
        assert all(mask.sum() >= smallest for mask in found.masks)


def columns(*ranges: tuple[int, int]) -> np.ndarray:
    """Masks (n, 4, 20) that cover these columns."""
    masks = np.zeros((len(ranges), 4, 20), bool)
    for mask, (begin, end) in zip(masks, ranges, strict=True):
        mask[:, begin:end] = True
    return masks


def test_joined_by_hand():
    masks = columns((0, 3), (3, 6), (5, 9), (10, 12), (12, 14), (17, 20))
    scores = np.float32([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    found = LabelledMasks(np.arange(6), np.array([0, 0, 0, 0, 1, 0]), scores, masks).joined()
    # 0 touches 1, which overlaps 2; 3 is a column away from 2 and touches 4, which has another class; 5 is alone
    assert found.index.tolist() == [0, 3, 4, 5] and found.labels.tolist() == [0, 0, 1, 0]
    np.testing.assert_array_equal(found.scores, scores[[0, 3, 4, 5]])
    np.testing.assert_array_equal(found.masks, columns((0, 9), (10, 12), (12, 14), (17, 20)))


def test_joined_at_a_corner_and_of_nothing():
    masks = np.zeros((2, 4, 4), bool)
    masks[0, :2, :2] = masks[1, 2:, 2:] = True
    found = LabelledMasks(np.arange(2), np.zeros(2, int), np.float32([0.9, 0.8]), masks).joined()
    assert len(found.labels) == 1 and found.masks.sum() == 8
    none = choose(chances((0.4, 0.3, 0.3)), embeddings(LEFT), InferenceConfig(join_parts=True))
    assert len(none.labels) == 0


def test_expected_error_by_hand():
    masks = columns((0, 3), (2, 4))
    found = LabelledMasks(np.arange(2), np.zeros(2, int), np.float32([0.9, 0.5]), masks)
    assert expected_error(found) == pytest.approx((3 * 0.1 + 1 * 0.5) / 20)  # where both are, the higher score counts
    assert expected_error(found.only(np.array([], int))) == 1


def test_highest_score_is_painted_last():
    masks = np.stack([DOT, LEFT, LEFT_TOO])
    painted = LabelledMasks(np.arange(3), np.array([4, 0, 19]), np.float32([0.9, 0.8, 0.7]), masks).semantic_map()
    expected = np.zeros((8, 12), np.uint8)
    expected[:, :5], expected[:, :4], expected[2:4, 2:4] = 20, 1, 5  # label j is painted as j + 1
    np.testing.assert_array_equal(painted, expected)


@pytest.fixture
def head() -> MaskClassifier:
    torch.manual_seed(0)
    return MaskClassifier(5, torch.zeros(1024), torch.ones(1024), (8, 8, 8))


def test_probabilities_of_both_shapes(head):
    tokens = np.random.default_rng(0).normal(0, 1, (2, 7, 4, 256)).astype(np.float16)
    flat = tokens.reshape(2, 7, 1024)
    expected = head(torch.tensor(flat)).softmax(-1).detach().numpy()  # (2, 7, 5)
    for given in (tokens, flat):
        found = probabilities(head, given)
        assert found.shape == (2, 7, 5) and found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-6)
    for given in (tokens[0], flat[0]):
        np.testing.assert_allclose(probabilities(head, given), expected[0], atol=1e-6)
    np.testing.assert_allclose(expected.sum(-1), 1, atol=1e-6)


def test_probabilities_of_a_memory_map_that_may_not_be_written(head, tmp_path):
    np.save(tmp_path / "tokens.npy", np.ones((3, 4, 256), np.float16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = probabilities(head, np.asarray(np.load(tmp_path / "tokens.npy", mmap_mode="r")))
    assert found.shape == (3, 5)
