"""Scores: worked by hand, against scikit-learn, and against the second evaluator faster-coco-eval."""

import io

import numpy as np
import pytest
import sklearn.metrics
import torch
from faster_coco_eval import COCO, COCOeval_faster
from pycocotools import mask as rle_tools
from sklearn.metrics import jaccard_score
from torchmetrics.functional.classification import binary_calibration_error

from usam.data.datasets import Instance
from usam.errors import UserError
from usam.evaluation import metrics
from usam.evaluation.metrics import BINS, Matches, Reliability, class_iou, confusion_matrix, match, mean_known
from usam.evaluation.scores import Scores

SIZE = (20, 30)  # height, width


def box(top: int, left: int, height: int, width: int, size: tuple[int, int] = SIZE) -> dict:
    mask = np.zeros(size, np.uint8, order="F")
    mask[top : top + height, left : left + width] = 1
    return rle_tools.encode(mask)


def test_iou_by_hand():
    truth, guess = np.array([[0, 0, 1, 1], [2, 2, 255, 255]], np.uint8), np.array([[0, 1, 1, 1], [0, 3, 2, 1]])
    matrix = confusion_matrix(truth, guess, 3)
    np.testing.assert_array_equal(matrix, [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0]])
    np.testing.assert_allclose(class_iou(matrix), [1 / 3, 2 / 3, 0, np.nan])  # class 3 is predicted, never true
    assert mean_known(class_iou(matrix)) == pytest.approx(1 / 3)


def test_no_pixel_counted_gives_nan():
    matrix = confusion_matrix(np.full((2, 2), 255, np.uint8), np.zeros((2, 2), np.uint8), 2)
    assert not matrix.any() and np.isnan(mean_known(class_iou(matrix)))


def random_maps(seed: int, classes: int = 6) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Truths and guesses of four images; class 4 is never true."""
    rng = np.random.default_rng(seed)
    truths = [rng.choice([0, 1, 2, 3, 5, 255], (int(h), 17)).astype(np.uint8) for h in rng.integers(5, 40, 4)]
    guesses = [np.where(rng.random(t.shape) < 0.6, t % 255, rng.integers(0, classes + 1, t.shape)) for t in truths]
    return truths, [g.astype(np.uint8) for g in guesses]


@pytest.mark.parametrize("seed", range(5))
def test_iou_against_scikit_learn(seed):
    truths, guesses = random_maps(seed)
    each = [confusion_matrix(t, g, 6) for t, g in zip(truths, guesses, strict=True)]
    y = np.concatenate([t.ravel() for t in truths]).astype(int)
    z = np.concatenate([g.ravel() for g in guesses]).astype(int)
    y, z = y[y != 255], z[y != 255]
    matrix, occurring = sum(each), np.unique(y)
    np.testing.assert_array_equal(matrix, sklearn.metrics.confusion_matrix(y, z, labels=range(7)))
    np.testing.assert_allclose(class_iou(matrix)[occurring], jaccard_score(y, z, labels=occurring, average=None))
    assert np.isnan(np.delete(class_iou(matrix), occurring)).all()
    assert mean_known(class_iou(matrix)) == pytest.approx(jaccard_score(y, z, labels=occurring, average="macro"))


@pytest.mark.parametrize("truth, guess", [((2, 3), (3, 2)), ((2, 3), (6,))])
def test_shapes_must_match(truth, guess):
    with pytest.raises(UserError, match="own size"):
        confusion_matrix(np.zeros(truth, np.uint8), np.zeros(guess, np.uint8), 2)


@pytest.mark.parametrize("truth, guess", [(3, 0), (0, 3), (0, 255), (0, -1)])
def test_values_must_be_classes(truth, guess):
    with pytest.raises(UserError, match="expected 0 to 2"):
        confusion_matrix(np.full((2, 2), truth), np.full((2, 2), guess), 2)


def map50(truth: list, found: list, num_classes: int) -> tuple[float, np.ndarray]:
    """Mean AP50 and each class's."""
    each = match(truth, found, num_classes).average_precision()
    return float(mean_known(each)), each


# Three objects of class 1 on two images; hits at ranks 1 and 3. Precision 1, 1/2, 2/3 at recall 1/3, 1/3, 2/3, so of
# the 101 recall levels 34 (0 to 0.33) have 1 and 33 (0.34 to 0.66) have 2/3: (34 + 22) / 101.
TRUTH = [
    ("2007_000033", SIZE, [Instance(1, box(0, 0, 5, 10)), Instance(1, box(10, 0, 5, 10))]),
    ("2007_000042", SIZE, [Instance(1, box(0, 0, 10, 10))]),
    ("2007_000061", SIZE, []),
]
FOUND = [
    ("2007_000033", 1, 0.9, box(0, 0, 5, 10)),
    ("2007_000061", 1, 0.8, box(0, 0, 5, 10)),
    ("2007_000042", 1, 0.7, box(0, 0, 6, 10)),  # IoU 0.6
    ("2007_000033", 1, 0.6, box(10, 0, 2, 10)),  # IoU 0.4
]
WORKED = 56 / 101


def test_ap_by_hand(capsys):
    mean, each = map50(TRUTH, FOUND, 3)
    assert mean == pytest.approx(WORKED) and each.shape == (3,)
    np.testing.assert_allclose(each, [np.nan, WORKED, np.nan])
    assert capsys.readouterr().out == ""


def test_other_class_without_truth_does_not_count():
    mean, each = map50(TRUTH, [*FOUND, ("2007_000061", 2, 0.99, box(0, 0, 5, 10))], 3)
    assert mean == pytest.approx(WORKED) and np.isnan(each[2])


@pytest.mark.parametrize("crowd, expected", [(True, WORKED), (False, None)])
def test_detections_on_a_crowd_count_for_nothing(crowd, expected):
    truth = [*TRUTH[:2], ("2007_000061", SIZE, [Instance(1, box(0, 0, 20, 20), crowd)])]
    on_it = [("2007_000061", 1, 0.95 - i / 100, box(10, i, 3, 3)) for i in range(3)]
    found = [d if d[0] != "2007_000061" else (*d[:3], box(0, 21, 5, 9)) for d in FOUND] + on_it
    mean, _ = map50(truth, found, 3)
    # An ordinary object instead: four objects, hits at ranks 4 and 6 of 7. Precision at most 2/6 at recall 1/4 and 1/2.
    assert mean == pytest.approx(expected or 51 / 101 * 2 / 6)


def test_only_crowds_are_no_ground_truth():
    mean, each = map50([(1, SIZE, [Instance(0, box(0, 0, 9, 9), True)])], [(1, 0, 0.9, box(0, 0, 5, 5))], 1)
    assert np.isnan(mean) and np.isnan(each).all()


def test_no_detections():
    mean, each = map50(TRUTH, [], 2)
    assert mean == 0
    np.testing.assert_array_equal(each, [np.nan, 0])


def test_one_perfect_detection():
    """The first annotation and the first detection must match: COCOeval takes an id of 0 for "unmatched"."""
    assert map50([(0, SIZE, [Instance(0, box(2, 3, 4, 5))])], [(0, 0, 0.1, box(2, 3, 4, 5))], 1)[0] == pytest.approx(1)


@pytest.mark.parametrize("before, expected", [(99, 1 / 100), (100, 0)])
def test_a_hundred_detections_an_image_count(before, expected):
    wrong = [(1, 0, 0.9 - i / 1000, box(15, i % 20, 2, 2)) for i in range(before)]
    mean, _ = map50([(1, SIZE, [Instance(0, box(0, 0, 4, 4))])], [*wrong, (1, 0, 0.1, box(0, 0, 4, 4))], 1)
    assert mean == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(6))
def test_ap_is_what_cocoeval_accumulates(seed, monkeypatch):
    """Also with many equal scores: the order is COCOeval's own."""
    made = []

    class Kept(metrics.COCOeval):
        def evaluate(self):
            made.append(self)
            return super().evaluate()

    monkeypatch.setattr(metrics, "COCOeval", Kept)
    _, (truth, found), _, num_classes = duplicated(seed)
    each = match(truth, found, num_classes).average_precision()
    made[0].accumulate()
    precision = made[0].eval["precision"][0, :, :, 0, 0]
    np.testing.assert_allclose(each, np.where(precision[0] < 0, np.nan, precision.mean(0)), atol=1e-12)


def random_case(seed: int) -> tuple[list, list, int]:
    """Images of several sizes, 5 classes (one without truth), crowds, shifted detections, all scores different."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for number in range(12):
        size, ones = (int(rng.integers(20, 40)), int(rng.integers(20, 40))), []
        for _ in range(rng.integers(0, 6)):
            top, left, height, width = (int(v) for v in rng.integers([0, 0, 4, 4], [12, 12, 9, 9]))
            label = int(rng.integers(0, 4))
            ones.append(Instance(label, box(top, left, height, width, size), bool(rng.random() < 0.2)))
            for _ in range(rng.integers(0, 3)):
                top2, left2 = top + int(rng.integers(0, 3)), left + int(rng.integers(0, 3))
                guess = label if rng.random() < 0.8 else int(rng.integers(0, 5))
                found.append((f"img{number}", guess, 0.0, box(top2, left2, height, width, size)))
        truth.append((f"img{number}", size, ones))
    scores = rng.permutation(len(found)) / len(found)
    return truth, [(i, label, float(s), mask) for (i, label, _, mask), s in zip(found, scores, strict=True)], 5


def second_opinion(truth: list, found: list, num_classes: int) -> np.ndarray:
    """Average precision per class at IoU 0.50 by faster-coco-eval, -1 without ground truth."""
    number = {image_id: 100 + n for n, (image_id, _, _) in enumerate(truth)}
    text = lambda rle: {"size": rle["size"], "counts": rle["counts"].decode()}  # noqa: E731
    annotations = [
        dict(image_id=number[i], category_id=10 + one.label, segmentation=text(one.mask), iscrowd=int(one.crowd),
             area=float(rle_tools.area(one.mask)), bbox=rle_tools.toBbox(one.mask).tolist())
        for i, _, ones in truth for one in ones
    ]  # fmt: skip
    content = {
        "images": [dict(id=number[i], height=size[0], width=size[1]) for i, size, _ in truth],
        "categories": [dict(id=10 + c, name=str(c)) for c in range(num_classes)],
        "annotations": [a | {"id": n} for n, a in enumerate(annotations, 1)],
    }
    ground = COCO(content)
    results = ground.loadRes(
        [dict(image_id=number[i], category_id=10 + c, segmentation=text(m), score=s) for i, c, s, m in found]
    )
    evaluation = COCOeval_faster(ground, results, "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][0, :, :, 0, -1].mean(axis=0)


@pytest.mark.parametrize("seed", range(6))
def test_ap_against_faster_coco_eval(seed):
    truth, found, num_classes = random_case(seed)
    other = second_opinion(truth, found, num_classes)
    mean, each = map50(truth, found, num_classes)
    np.testing.assert_allclose(each, np.where(other < 0, np.nan, other), atol=1e-9)
    assert mean == pytest.approx(other[other >= 0].mean())
    assert 0.1 < mean < 0.9 and np.isnan(each[4])


def duplicated(seed: int) -> tuple[np.ndarray, list, list, int]:
    """A random case with equal scores among its detections, weights of its images, and the case with each repeated."""
    truth, found, num_classes = random_case(seed)
    found = [(i, label, round(score, 1), mask) for i, label, score, mask in found]
    weights = np.random.default_rng(seed).integers(0, 4, len(truth))
    copies = [(i, f"{i}-{n}") for (i, _, _), times in zip(truth, weights, strict=True) for n in range(times)]
    of = {image: (size, ones) for image, size, ones in truth}
    more = [(copy, *of[image]) for image, copy in copies]
    hits = [(copy, *rest) for image, copy in copies for i, *rest in found if i == image]
    return weights, [truth, found], [more, hits], num_classes


@pytest.mark.parametrize("seed", range(6))
def test_a_weight_is_as_good_as_copies_of_the_image(seed):
    weights, once, repeated, num_classes = duplicated(seed)
    ways = np.stack([np.ones_like(weights), weights])
    plain, weighted = match(*once, num_classes).average_precision(ways)
    np.testing.assert_array_equal(plain, match(*once, num_classes).average_precision())
    other = second_opinion(*repeated, num_classes)
    # Among equal scores the order of detections decides, and copies stand elsewhere in it: 0.02 for that
    np.testing.assert_allclose(weighted, np.where(other < 0, np.nan, other), atol=0.02)


def scores_of(seed: int) -> Scores:
    truths, guesses = random_maps(seed)
    confusion = np.stack([confusion_matrix(t, g, 6) for t, g in zip(truths, guesses, strict=True)])
    return Scores(confusion, match(*random_case(seed)[:2], 5))


def test_scores_of_images_drawn_again():
    scores = scores_of(0)
    truths, guesses = random_maps(0)
    weights = np.array([[1, 1, 1, 1], [2, 0, 1, 0]])
    y, z = (np.concatenate([maps[0].ravel(), maps[0].ravel(), maps[2].ravel()]) for maps in (truths, guesses))
    y, z = y[y != 255].astype(int), z[y != 255].astype(int)
    by_hand = jaccard_score(y, z, labels=np.unique(y), average="macro")
    np.testing.assert_allclose(scores.resampled("miou", weights), [scores.miou, by_hand])
    ones = np.ones((1, 12))
    np.testing.assert_allclose(scores.resampled("map50", ones), [scores.map50])


def test_scores_come_back_from_a_file():
    scores = scores_of(1)
    with np.load(io.BytesIO(scores.packed(row="more"))) as found:
        again = Scores.of(found)
    assert (again.miou, again.map50) == (scores.miou, scores.map50)
    for name in vars(Matches(*[None] * 5)):
        np.testing.assert_array_equal(getattr(again.matches, name), getattr(scores.matches, name))


@pytest.mark.parametrize(
    "truth, found, message",
    [
        ([*TRUTH, TRUTH[0]], FOUND, "every image once"),
        (TRUTH, [("2007_000033", 1, 0.9, box(0, 0, 5, 5, SIZE[::-1]))], r"'2007_000033' is \[30, 20\]"),
        (TRUTH, [("2007_000033", 3, 0.9, box(0, 0, 5, 5))], "label 3, expected 0 to 2"),
    ],
)
def test_bad_input_is_named(truth, found, message):
    with pytest.raises(UserError, match=message):
        map50(truth, found, 3)


def some_scores(seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    scores = [rng.random(n).astype(np.float32) for n in (50, 1, 0, 80)] + [np.float32([0, 1])]
    return [(s, rng.random(len(s)) < s**2) for s in scores]


@pytest.mark.parametrize("seed", range(4))
def test_calibration_error_against_torchmetrics(seed):
    images = some_scores(seed)
    found = Reliability.of(images)
    ways = np.array([[1, 1, 1, 1, 1], [2, 0, 3, 1, 0]])
    for weights, error in zip(ways, found.error(ways), strict=True):
        score, right = (
            torch.tensor(np.concatenate([np.repeat(part, n) for part, n in zip(parts, weights, strict=True)]))
            for parts in zip(*images, strict=True)
        )
        assert error == pytest.approx(binary_calibration_error(score, right.int(), n_bins=BINS).item(), abs=1e-6)


def test_reliability_by_hand():
    found = Reliability.of([(np.array([0.95, 0.97]), np.array([True, False])), (np.array([0.5]), np.array([True]))])
    count, score, share = found.curve()
    assert count.tolist() == [0] * 7 + [1] + [0] * 6 + [2]
    np.testing.assert_allclose([score[7], score[14], share[7], share[14]], [0.5, 0.96, 1, 0.5])
    assert np.isnan(np.delete(score, [7, 14])).all()
    np.testing.assert_allclose(found.error(np.ones((1, 2))), (0.5 + 2 * 0.46) / 3)
