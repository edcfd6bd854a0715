"""The shares that say where labelled masks are lost, on an image worked out by hand."""

import numpy as np
import pytest
import torch

from usam.config import InferenceConfig
from usam.data.datasets import Example, Instance
from usam.evaluation.diagnostics import reliability, where_lost
from usam.method.head import MaskClassifier
from usam.method.masks import MaskEmbeddings, mask_iou, masks_to_rle, point_grid

SIDE, DIM = 8, 4  # an image of 8 x 8 pixels; its 2 x 2 grid points lie at pixels 2 and 6
GRID = point_grid((SIDE, SIDE), 2)


def head() -> MaskClassifier:
    """Two classes; gives a token's first two numbers back as logits."""
    model = MaskClassifier(2, torch.zeros(DIM), torch.ones(DIM), (2, 2, 2))
    for layer in model.layers[::2]:
        layer.weight.data = torch.eye(2, layer.in_features)
        layer.bias.data.zero_()
    return model.eval().requires_grad_(False)


def quarter(row: int, column: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = True
    return mask


class Pictures(list):
    class_names = ("cat", "dog")


def scene(semantic: np.ndarray, instances: list[tuple[int, np.ndarray, bool]]) -> Example:
    ones = [Instance(label, masks_to_rle(mask[None])[0], crowd) for label, mask, crowd in instances]
    return Example("one", np.zeros((SIDE, SIDE, 3), np.uint8), semantic.astype(np.uint8), ones)


def found(logits: list[tuple[float, float]]) -> MaskEmbeddings:
    """One mask a grid point, its own quarter of the image."""
    tokens = np.zeros((4, 2, DIM // 2), np.float16)
    tokens[:, 0] = logits
    masks = np.stack([quarter(r, c) for r in (0, 1) for c in (0, 1)])
    return MaskEmbeddings(tokens, masks_to_rle(masks), np.ones(4, np.float32), (SIDE, SIDE), (SIDE, SIDE), GRID)


def test_each_share_by_hand():
    sure, unsure = (9.0, 0.0), (0.5, 0.0)  # both say cat: probabilities 0.9999 and 0.62
    cat, dog, rest = quarter(0, 0), quarter(0, 1), quarter(1, 0)
    corner = np.zeros_like(cat)
    corner[7, 7] = True  # a dog too small for any mask
    semantic = cat * 1 + dog * 2 + rest * 1
    one = scene(semantic, [(0, cat, False), (1, dog, False), (0, rest, False), (1, corner, False), (1, ~cat, True)])
    [share] = where_lost(
        Pictures([one]), [found([sure, sure, unsure, sure])], [head()], InferenceConfig(score_threshold=0.7)
    )
    assert share == pytest.approx(
        {
            "masks": 3 / 4,  # all but the corner; the crowd is not asked about
            "tokens": 2 / 3,  # the dog is called a cat
            "threshold": 1 / 2,  # of the two right ones, one is unsure
            "background": 0.0,  # its only point is a cat for sure
        }
    )


def test_void_is_neither_and_nothing_asked_is_nan():
    void = np.full((SIDE, SIDE), 255)
    [share] = where_lost(Pictures([scene(void, [])]), [found([(9.0, 0.0)] * 4)], [head()], InferenceConfig())
    assert all(np.isnan(v) for v in share.values())


def test_counts_add_up_over_images():
    cat = scene(np.ones((SIDE, SIDE)), [(0, np.ones((SIDE, SIDE), bool), False)])
    empty = scene(np.zeros((SIDE, SIDE)), [])
    right, wrong = found([(9.0, 0.0)] * 4), found([(0.0, 9.0)] * 3 + [(0.0, 0.0)])
    [share] = where_lost(
        Pictures([cat, cat, empty]), [right, wrong, wrong], [head()], InferenceConfig(score_threshold=0.7)
    )
    # 4 right of 8 - the tie of the last point goes to class 0, a cat: 5 of 8, of which 4 are sure
    assert share == pytest.approx({"masks": 0.0, "tokens": 5 / 8, "threshold": 4 / 5, "background": 1 / 4})


def test_each_head_has_its_own_shares():
    cat = scene(np.ones((SIDE, SIDE)), [(0, quarter(0, 0), False)])
    dog_lover = head()
    dog_lover.layers[-1].bias.data[1] = 99
    one, other = where_lost(Pictures([cat]), [found([(9.0, 0.0)] * 4)], [head(), dog_lover], InferenceConfig())
    assert (one["tokens"], other["tokens"]) == (1, 0) and one["masks"] == other["masks"] == 1


def test_reliability_of_heads_by_hand():
    semantic = quarter(0, 0) * 1 + quarter(0, 1) * 2 + quarter(1, 0) * 255  # cat, dog, void, background
    one, sure = scene(semantic, []), (9.0, 0.0)
    [all_masks] = reliability(Pictures([one]), [found([sure, sure, sure, (0.0, 0.0)])], [head()])
    [on_objects] = reliability(Pictures([one]), [found([sure] * 4)], [head()], background=False)
    assert all_masks.count.sum() == 3 and all_masks.right.sum() == 1  # the cat is right; void is not asked
    assert all_masks.score.sum() == pytest.approx(2 * 0.99988 + 0.5, abs=1e-4)  # background, half cat half dog
    assert on_objects.count[0, -1] == 2 and on_objects.error(np.ones((1, 1)))[0] == pytest.approx(0.5, abs=1e-3)


def test_iou_between_two_sets_is_a_block_of_the_whole():
    masks = np.random.default_rng(0).random((7, 9, 5)) > 0.6
    masks[2] = masks[5] = False
    np.testing.assert_array_equal(mask_iou(masks[:4], masks[4:]), mask_iou(masks)[:4, 4:])
    assert mask_iou(masks[:4], masks[:0]).shape == (4, 0)
