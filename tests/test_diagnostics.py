"""What pictures and embeddings hold: each number against one worked out by hand."""

import numpy as np
import pytest
import torch

from usam import profiles
from usam.config import InferenceConfig
from usam.data.datasets import Example, Instance
from usam.evaluation.diagnostics import (
    central_points,
    image_statistics,
    mask_kinds,
    mean_image,
    neighbour_agreement,
    objects,
    whole_objects,
)
from usam.method.head import MaskClassifier
from usam.method.masks import MaskEmbeddings, masks_to_rle, point_grid
from usam.report import tables


class OneExample:
    """A data set of given examples."""

    name = "two"
    class_names = ("dog", "car")

    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, i):
        return self.examples[i]


def box(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros((10, 10), bool)
    mask[top:bottom, left:right] = True
    return mask


def example(*instances: tuple[int, np.ndarray, bool]) -> Example:
    found = [Instance(label, masks_to_rle(mask[None])[0], crowd) for label, mask, crowd in instances]
    return Example("x", np.zeros((10, 10, 3), np.uint8), np.zeros((10, 10), np.uint8), found)


def embeddings(*masks: np.ndarray) -> MaskEmbeddings:
    rles = masks_to_rle(np.stack(masks))
    count = len(masks)
    tokens, points = np.zeros((count, 4, 256), np.float16), np.zeros((count, 2), np.float32)
    return MaskEmbeddings(tokens, rles, np.ones(count), (10, 10), (10.0, 10.0), points)


def test_objects_are_counted_with_their_share_of_the_picture():
    left, corner = box(0, 10, 0, 5), box(0, 2, 8, 10)
    table = objects(OneExample([example((1, left, False)), example(), example((0, corner, True))]))
    assert table.to_numpy().tolist() == [[0, "car", 0.5, False], [2, "dog", 0.04, True]]


def test_looks_of_plain_images():
    half = np.zeros((4, 4, 3), np.uint8)
    half[:2] = 255
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    table = image_statistics([half, red])
    assert table.loc[0].tolist() == pytest.approx([0.5, 0.5, 0.0])
    assert table.loc[1].tolist() == pytest.approx([0.299, 0.0, 1.0], abs=2e-3)  # the weight of red in lightness


def test_average_of_images_of_different_sizes():
    dark, light = np.full((10, 20, 3), 10, np.uint8), np.full((8, 4, 3), 30, np.uint8)
    mean = mean_image([dark, light], side=5)
    assert mean.shape == (5, 5, 3) and (mean == 20).all()


@pytest.mark.parametrize(
    ("side", "expected"), [(4, list(range(16))), (3, list(range(9))), (5, [6, 7, 8, 11, 12, 13, 16, 17, 18])]
)
def test_central_points(side, expected):
    assert central_points(side).tolist() == expected


def test_central_points_of_the_papers_grid_lie_in_the_middle():
    points = point_grid((100, 100), 10)[central_points(10)]
    assert len(points) == 16 and points.min() == 35 and points.max() == 65


def test_mask_kinds():
    thing, crowd = box(0, 6, 0, 6), box(8, 10, 0, 10)
    masks = (
        box(0, 6, 0, 5),  # 30 of 36 pixels: IoU 0.83
        box(0, 3, 0, 3),  # inside, IoU 0.25
        box(5, 9, 4, 8),  # 2 of 16 pixels on the thing
        box(4, 8, 4, 6),  # 4 of 8 pixels on the thing
        box(8, 10, 0, 10),  # the crowd is no object
        np.zeros((10, 10), bool),
    )
    kinds = mask_kinds(example((0, thing, False), (1, crowd, True)), embeddings(*masks))
    assert kinds.tolist() == ["whole", "part", "background", "mixed", "background", "background"]


def test_masks_of_an_image_without_objects_are_background():
    assert mask_kinds(example(), embeddings(box(0, 5, 0, 5))).tolist() == ["background"]


def test_neighbours_within_an_image_do_not_count():
    tokens = np.float32([[0], [0.1], [1], [5.2], [5.3], [9]])
    images = np.array([0, 0, 1, 2, 2, 3])
    labels = np.array(["a", "a", "a", "b", "b", "a"])
    # 0 and 0.1 -> 1 (right); 1 -> 0.1 (right); 5.2 and 5.3 -> 9 (wrong); 9 -> 5.3 (wrong)
    agreement, chance = neighbour_agreement(tokens, images, labels)
    assert agreement == pytest.approx(3 / 6)
    # a random one: image 0: 2 of 4 (twice); image 1: 3 of 5; image 2: 0 of 4 (twice); image 3: 3 of 5
    assert chance == pytest.approx((0.5 + 0.5 + 0.6 + 0 + 0 + 0.6) / 6)


def test_each_setting_is_explained():
    table = tables.settings(profiles.load("mini")).set_index("setting")
    assert table.loc["sam.points_per_side", "value"] == "10"
    assert table.loc["sam.points_per_side", "meaning"].startswith("side of the point grid")
    assert table.loc["datasets.coco.classes", "value"] == "–"
    assert table.loc["head.widths", "value"] == "256, 128, 64"
    assert table["meaning"].str.len().min() > 5


def test_wholes_among_all_masks_after_nms_alone_and_among_those_that_are_kept():
    thing = box(0, 6, 0, 6)
    one = example((0, thing, False))
    # whole, part, background, nearly the first again (whole, too, but SAM predicts a higher IoU), nothing
    masks = embeddings(thing, box(0, 3, 0, 3), box(7, 10, 7, 10), box(0, 6, 0, 5), np.zeros((10, 10), bool))
    masks.iou[:] = (0.8, 0.1, 0.5, 0.9, 1.0)
    masks.tokens[:, 0, 0] = (9, 9, 0, 0, 9)  # the head is sure of the first two, and of nothing
    head = MaskClassifier(2, torch.zeros(1024), torch.ones(1024), (2, 2, 2)).eval().requires_grad_(False)
    for layer in head.layers[::2]:
        layer.weight.data = torch.eye(2, layer.in_features)
        layer.bias.data.zero_()
    every, of_nms, of_head = whole_objects(OneExample([one]), [masks], [head], InferenceConfig())
    assert every.tolist() == [[2, 5]] and of_nms.tolist() == [[1, 3]] and of_head.tolist() == [[1, 2]]
    masks.iou[3] = 0.0  # now the part, which no mask overlaps by half, and the first stay
    masks.masks[3] = embeddings(box(0, 3, 0, 6)).masks[0]  # half of the thing: goes behind it, as IoU 0.5 is enough
    assert whole_objects(OneExample([one]), [masks], [], InferenceConfig())[1].tolist() == [[1, 3]]
