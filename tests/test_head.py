"""Equations 1 to 3 and the choice of bad masks, against numbers worked out by hand and finite differences."""

import math

import pytest
import torch
from torch import nn

from usam.method.head import MaskClassifier
from usam.method.losses import bad_masks, bag_scores, entropy, known_masks_loss, mil_loss, uncertainty_loss

# One image, four masks, two classes. With a = 2, k = ceil(4 / 2) = 2:
# class 0: the two largest of 1 5 3 2 are 5 and 3, mean 4; class 1: of 0 0 8 4 they are 8 and 4, mean 6.
BAG = torch.tensor([[[1.0, 0.0], [5.0, 0.0], [3.0, 8.0], [2.0, 4.0]]])


def test_bag_scores_by_hand():
    torch.testing.assert_close(bag_scores(BAG, 2), torch.tensor([[4.0, 6.0]]))
    torch.testing.assert_close(bag_scores(BAG, 1), torch.tensor([[2.75, 3.0]]))  # all masks
    torch.testing.assert_close(bag_scores(BAG, 10), torch.tensor([[5.0, 8.0]]))  # the one best


@pytest.mark.parametrize(
    "d, a, k", [(100, 10, 10), (101, 10, 11), (99, 10, 10), (5, 2, 3), (3, 10, 1), (1, 10, 1), (7, 1, 7), (10, 2.5, 4)]
)
def test_k_is_rounded_up_and_at_least_one(d, a, k):
    logits = torch.arange(float(d)).view(1, d, 1)
    # the k largest of 0 ... d - 1 have the mean d - 1 - (k - 1) / 2, another one for every k
    assert bag_scores(logits, a).item() == pytest.approx(d - 1 - (k - 1) / 2)


def test_mil_loss_by_hand():
    # scores (4, 6): -ln softmax = ln(1 + e^2) = 2.126928 for class 0, ln(1 + e^-2) = 0.126928 for class 1
    for labels, loss in (([1.0, 0.0], 2.126928), ([0.0, 1.0], 0.126928), ([1.0, 1.0], 1.126928)):
        assert mil_loss(BAG, torch.tensor([labels]), 2).item() == pytest.approx(loss, abs=1e-6)
    two = mil_loss(BAG.repeat(2, 1, 1), torch.tensor([[1.0, 0.0], [1.0, 1.0]]), 2)
    assert two.item() == pytest.approx((2.126928 + 1.126928) / 2, abs=1e-6)  # the mean over images


def test_loss_of_known_masks_by_hand():
    # of BAG's masks, the second (5, 0) is known to be class 0, the fourth (2, 4) class 0 too: ln(1 + e^-5), ln(1 + e^2)
    loss = known_masks_loss(BAG, torch.tensor([[-1, 0, -1, 0]]))
    assert loss.item() == pytest.approx((0.006715 + 2.126928) / 2, abs=1e-6)  # the mean over known masks alone
    assert known_masks_loss(BAG, torch.tensor([[-1] * 4])).item() == 0


def test_entropy_by_hand():
    # p = (3/4, 1/4): H = 2 ln 2 - 3/4 ln 3 = 0.562335; uniform over four: ln 4; certain: 0
    assert entropy(torch.tensor([math.log(3), 0.0])).item() == pytest.approx(0.562335, abs=1e-6)
    torch.testing.assert_close(entropy(torch.zeros(2, 5, 4)), torch.full((2, 5), math.log(4)))
    assert entropy(torch.tensor([200.0, 0.0, 0.0])).item() == 0.0


def test_bad_masks_by_hand():
    # four classes, tau = 0.5 ln 4 = 0.69; logit 9 against three zeros: H = 0.004, sure; logit 1: H = 1.27, unsure
    sure, unsure = (lambda j: [9.0 * (i == j) for i in range(4)]), (lambda j: [1.0 * (i == j) for i in range(4)])
    logits = torch.tensor([[sure(0), sure(2), unsure(0), unsure(2)], [sure(0), sure(1), sure(2), unsure(1)]])
    labels = torch.tensor([[1.0, 0, 0, 0], [1.0, 1, 0, 0]])
    bad = bad_masks(logits, labels, 0.5 * math.log(4))
    # image 1: right, wrong, unsure although right, unsure and wrong; image 2 has classes 0 and 1
    assert bad.dtype == torch.bool
    assert bad.tolist() == [[False, True, True, True], [False, False, True, True]]


def test_entropy_equal_to_the_threshold_is_not_bad():
    logits, labels = torch.zeros(1, 1, 4), torch.tensor([[1.0, 0, 0, 0]])  # argmax of a tie is class 0
    threshold = entropy(logits).item()
    assert not bad_masks(logits, labels, threshold).item()
    assert bad_masks(logits, labels, threshold - 1e-6).item()


def test_uncertainty_loss_by_hand():
    # mask A: p = (3/4, 1/4), -ln 3/4 - ln 1/4 = 1.673976; mask B: uniform, 2 ln 2 = 1.386294
    image = [[math.log(3), 0.0], [0.0, 0.0], [7.0, -7.0]]
    logits = torch.tensor([image, image, image])
    bad = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    each = [(1.673976 + 1.386294) / 2, 1.673976, 0.0]  # over an image's bad masks; the last image has none
    assert uncertainty_loss(logits, bad).item() == pytest.approx(sum(each) / 3, abs=1e-6)
    assert uncertainty_loss(logits, torch.zeros(3, 3, dtype=torch.bool)).item() == 0.0


@pytest.mark.parametrize("classes", [2, 5, 20])
def test_uncertainty_sum_and_mean_differ_by_the_number_of_classes(classes):
    logits = torch.randn(3, 6, classes, generator=torch.Generator().manual_seed(0))
    bad = torch.rand(3, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    torch.testing.assert_close(uncertainty_loss(logits, bad), classes * uncertainty_loss(logits, bad, "mean"))


def test_uncertainty_over_bad_masks_may_be_a_sum():
    logits, bad = torch.randn(2, 5, 3), torch.tensor([[1, 1, 0, 0, 1], [0, 0, 0, 0, 0]]).bool()
    mean = uncertainty_loss(logits, bad)
    assert uncertainty_loss(logits, bad, mask_reduction="sum") == pytest.approx(3 * float(mean))


@pytest.mark.parametrize("classes", [2, 5, 20])
def test_uncertainty_loss_is_smallest_where_the_student_has_no_idea(classes):
    everything = torch.ones(1, 1, dtype=torch.bool)
    uniform = torch.full((1, 1, classes), 3.0, requires_grad=True)  # any constant
    loss = uncertainty_loss(uniform, everything)
    assert loss.item() == pytest.approx(classes * math.log(classes), rel=1e-6)
    loss.backward()
    torch.testing.assert_close(uniform.grad, torch.zeros_like(uniform), atol=1e-5, rtol=0)
    others = torch.randn(50, 1, 1, classes, generator=torch.Generator().manual_seed(2))
    assert all(uncertainty_loss(o, everything) > loss for o in others)


def test_gradients_against_finite_differences():
    generator = torch.Generator().manual_seed(3)
    # distinct multiples of 1/8: far from ties, so that the k largest stay the k largest
    values = torch.randperm(2 * 7 * 3, generator=generator).double() / 8
    logits = values.view(2, 7, 3).requires_grad_()
    labels = torch.tensor([[1.0, 0, 0], [0, 1, 1]], dtype=torch.float64)
    bad = torch.tensor([[True, False] * 3 + [True], [False] * 7])
    assert torch.autograd.gradcheck(lambda o: mil_loss(o, labels, 3), logits)
    assert torch.autograd.gradcheck(lambda o: uncertainty_loss(o, bad), logits)
    assert torch.autograd.gradcheck(lambda o: mil_loss(o, labels, 3) + 0.15 * uncertainty_loss(o, bad, "mean"), logits)
    assert torch.autograd.gradcheck(entropy, logits)


def test_gradient_reaches_the_k_best_masks_alone():
    logits = BAG.clone().requires_grad_()
    mil_loss(logits, torch.tensor([[1.0, 0.0]]), 2).backward()
    # d loss / d s = softmax(s) - y = (0.119203 - 1, 0.880797), shared by the two masks of each class
    share = 0.880797 / 2
    expected = torch.tensor([[[0, 0], [-share, 0], [-share, share], [0, share]]])
    torch.testing.assert_close(logits.grad, expected, atol=1e-6, rtol=0)


def test_head_has_the_papers_layers():
    head = MaskClassifier(20, torch.zeros(1024), torch.ones(1024))
    kinds = [type(layer) for layer in head.layers]
    assert kinds == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    shapes = [tuple(layer.weight.shape) for layer in head.layers if isinstance(layer, nn.Linear)]
    assert shapes == [(512, 1024), (256, 512), (128, 256), (20, 128)]


@pytest.mark.parametrize("shape", [(1024,), (100, 1024), (2, 100, 1024)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_head_keeps_leading_dimensions_and_answers_in_float32(shape, dtype):
    head = MaskClassifier(3, torch.zeros(1024), torch.ones(1024))
    logits = head(torch.zeros(shape, dtype=dtype))
    assert logits.shape == (*shape[:-1], 3) and logits.dtype == torch.float32


def test_standardisation_is_part_of_the_head_and_of_its_state():
    generator = torch.Generator().manual_seed(4)
    mean, std = torch.randn(6, generator=generator), torch.rand(6, generator=generator) + 0.5
    z = torch.randn(5, 6, generator=generator)
    head, plain = MaskClassifier(3, mean, std, (4, 4, 4)), MaskClassifier(3, torch.zeros(6), torch.ones(6), (4, 4, 4))
    plain.layers.load_state_dict(head.layers.state_dict())
    torch.testing.assert_close(head(z * std + mean), plain(z))
    assert not {"mean", "std"} & {name for name, _ in head.named_parameters()}  # nothing trains them
    plain.load_state_dict(head.state_dict())
    torch.testing.assert_close(plain(z), head(z))
