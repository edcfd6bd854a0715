"""ACR: its seven terms and its maps by hand, its training on coloured shapes."""

import math
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn
from torchvision.models import ResNet18_Weights
from torchvision.ops import FrozenBatchNorm2d

from usam.baselines import acr, fitting
from usam.baselines.acr import Acr
from usam.baselines.acr_losses import (
    class_loss,
    classifier_losses,
    hidden_cells,
    painting_loss,
    reconstructor_losses,
    segment_of,
)
from usam.baselines.acr_networks import Classifier, Reconstructor, load_weights, resnet
from usam.baselines.fitting import square
from usam.config_rivals import AcrConfig
from usam.data import published
from usam.errors import UserError

TINY = dict(network="resnet18", weights=None, width=8, features=8, painter=(8, 8), side=32, grid=4, batch=4)
TINY |= dict(alone=2, head_start=1, steps=3, rates=(2e-3, 2e-3))
COLOURS = np.array([[220, 60, 40], [40, 90, 220]])


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def shape(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A red disc or a blue square, by turns, on grey noise: (40, 48, 3) uint8, and where it is."""
    rng = np.random.default_rng(number)
    y, x = np.ogrid[:40, :48]
    dy, dx = np.abs(y - rng.integers(14, 27)), np.abs(x - rng.integers(14, 35))
    inside = (dy**2 + dx**2 < 100) if number % 2 == 0 else (np.maximum(dy, dx) < 9)
    image = rng.integers(90, 160, (40, 48, 1)).repeat(3, 2)
    return np.where(inside[..., None], COLOURS[number % 2], image).astype(np.uint8), inside


def shapes(count: int = 16) -> fitting.Pictures:
    return fitting.Pictures(lambda i: shape(i)[0], torch.eye(2).repeat(count // 2, 1))


def fitted(path: Path, plain: bool = False, seed: int = 0, **settings):
    model = Acr(AcrConfig(**TINY | settings), 2, plain=plain)
    return model, model.fit(shapes(), seed, path / "state.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.set_num_threads(1)
    return fitted(tmp_path_factory.mktemp("acr"), alone=40, head_start=30, steps=20, rates=(3e-3, 3e-3), batch=8)


def row(*values: float) -> torch.Tensor:
    """One picture, one row, one channel: (1, 1, 1, n)."""
    return torch.tensor(values, dtype=torch.float32).view(1, 1, 1, -1)


# -- the seven terms, by hand -------------------------------------------------------------------------------------


def mean_painter(features: torch.Tensor) -> torch.Tensor:
    """A reconstructor that paints all pixels in the mean of what it sees."""
    return features.mean((2, 3), keepdim=True).expand(-1, 3, -1, features.shape[3])


def test_class_loss():
    logits, labels = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[1.0, 0.0]])
    assert class_loss(logits, labels).item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_painting_loss_is_a_mean_over_all_pixels_wherever_it_is_counted():
    painted, pictures = torch.tensor([1.0, 4.0]).expand(1, 3, 1, 2), torch.ones(1, 3, 1, 2)
    assert painting_loss(painted, pictures).item() == 1.5
    assert painting_loss(painted, pictures, row(1, 0.5)).item() == 0.75


def test_reconstructor_losses():
    features, pictures = row(4, 4, 4, 8), torch.ones(1, 3, 1, 4)
    losses = reconstructor_losses(mean_painter, features, pictures, row(1, 0.5, 0, 0), row(1, 0, 0, 1))
    assert losses["whole"].item() == 4  # |5 - 1|
    assert losses["hidden_segment"].item() == 0.75  # seen 0 4 4 8, |4 - 1| on the first of four pixels
    assert losses["hidden_surroundings"].item() == 0.5  # seen 4 4 4 0, |3 - 1| on the last


def test_classifier_losses_and_their_gradients():
    mask = row(1, 0.5, 0, 0).requires_grad_()
    losses = classifier_losses(mean_painter, row(4, 4, 4, 4), torch.ones(1, 3, 1, 4), mask, row(1, 0, 1, 1))
    assert losses["surroundings"].item() == 0.25  # seen 4 2 0 0, |1.5 - 1| on two of four
    assert losses["segment"].item() == 0.375  # seen 0 2 4 4, |2.5 - 1| on the first: the second one's class has not won
    (through,) = torch.autograd.grad(losses["surroundings"], mask, retain_graph=True)
    assert through.flatten().tolist() == [0.5] * 4  # more of any cell, more is painted: 4/4 times 2/4
    (through,) = torch.autograd.grad(losses["segment"], mask)
    assert through.flatten().tolist() == [-0.25] * 4  # and nothing for where it is counted


def test_the_classifier_goes_up_where_the_reconstructor_fails():
    weight = nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.SGD([{"params": [weight], "lr": 9.0, "first": 0.1}])
    losses = {"classes": 2 * weight, "surroundings": 3 * weight, "segment": 4 * weight}
    values = acr._descend(optimizer, losses, acr.CLASSIFIER, done=0.75)
    assert values == {"classes": 2, "surroundings": 3, "segment": 4}
    slope = 1 * 2 - 0.8 * 3 - 0.3 * 4
    assert weight.item() == pytest.approx(1 - 0.1 * 0.25**0.9 * slope)


def test_the_reconstructor_goes_down_all_its_terms():
    weight = nn.Parameter(torch.tensor(1.0))
    optimizer = torch.optim.SGD([{"params": [weight], "lr": 9.0, "first": 0.1}])
    names = ("reconstructor_classes", "whole", "hidden_segment", "hidden_surroundings")
    losses = {name: k * weight for k, name in enumerate(names, 1)}
    acr._descend(optimizer, losses, acr.RECONSTRUCTOR, done=0)
    assert weight.item() == pytest.approx(1 - 0.1 * (1 + 0.2 * 2 + 0.3 * 3 + 0.5 * 4))


# -- masks and maps -----------------------------------------------------------------------------------------------


def test_segment_of():
    cams = torch.tensor([[[[4.0, 2.0], [-1.0, 0.0]], [[5.0, 3.0], [1.0, 2.0]], [[9.0, 9.0], [9.0, 9.0]]]])
    mask, won = segment_of(cams, torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([0]), 2)
    assert mask[0, 0].tolist() == [[1, 0.5], [0, 0]]
    assert won[0, 0].tolist() == [[1, 0], [0, 0]]  # the other class: 1, 0.6, 0.2, 0.4; the third is not on the image
    nothing, _ = segment_of(-cams, torch.ones(1, 3), torch.tensor([2]), 2)
    assert not nothing.any()
    large, _ = segment_of(cams, torch.ones(1, 3), torch.tensor([0]), 8)
    assert large.shape == (1, 1, 8, 8) and large.max() == 1


def test_hidden_cells_are_whole_and_as_many_as_asked():
    hidden = hidden_cells(50, 8, 0.3, 32, fitting.generator(0, 0))
    cells = hidden.unfold(2, 4, 4).unfold(3, 4, 4).flatten(4)  # (50, 1, 8, 8, 16)
    assert hidden.shape == (50, 1, 32, 32) and set(cells.mean(-1).unique().tolist()) == {0, 1}
    assert hidden.mean().item() == pytest.approx(0.3, abs=0.03)


def test_semantic():
    activations = np.array([[[8.0, 4.0, 0.5]], [[9.0, 9.0, 9.0]], [[0.0, 1.0, 2.0]]], np.float32)
    present = np.array([True, False, True])
    assert Acr.semantic(activations, present, 0.3).tolist() == [[1, 1, 3]]  # 1 0.5 0.06; 0 0.5 1; a tie goes first
    assert Acr.semantic(activations, present, 0.6).tolist() == [[1, 0, 3]]
    assert Acr.semantic(activations, np.zeros(3, bool), 0.3).tolist() == [[0, 0, 0]]


class Brightness(nn.Module):
    """A classifier of one class whose CAM is the picture's first channel, and its right half's negative."""

    def forward(self, pictures):
        sign = torch.where(torch.arange(pictures.shape[3]) < pictures.shape[3] // 2, 1.0, -1.0)
        return pictures[:, :1] * sign, None, None


def test_activations_are_a_sum_over_scales_and_flips_of_what_is_positive():
    model = Acr(AcrConfig(**TINY), 1)
    model.classifier = Brightness()
    found = model.activations(np.full((40, 60, 3), 255, np.uint8))  # 1 left and -1 right; the flip sees the other side
    assert found.shape == (1, 40, 60) and found.dtype == np.float32
    np.testing.assert_allclose(found[:, :, [5, 20, 40, 55]], 4, atol=1e-5)


def test_crops_are_flipped_squares_of_the_picture():
    x = torch.arange(64.0).expand(64, 64)
    seen = acr.crops(torch.stack([x, x.T]).expand(50, -1, -1, -1), fitting.generator(0, 0))
    assert seen.shape == (50, 2, 64, 64) and seen.min() >= 0 and seen.max() <= 63
    width = (seen[:, 0, 20, 33] - seen[:, 0, 20, 32]) * 64  # from a pixel to the next, times their number
    height = (seen[:, 1, 33, 20] - seen[:, 1, 32, 20]) * 64
    assert 0.2 < (width < 0).float().mean() < 0.8
    torch.testing.assert_close(width.abs(), height, atol=0.05, rtol=0)
    assert height.min() > 0.6 * 64 - 0.1 and height.max() < 64.1 and height.std() > 3


# -- networks -----------------------------------------------------------------------------------------------------


def test_dilation_is_that_of_torchvision():
    ours = resnet("resnet50", 64, nn.BatchNorm2d).eval()
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True]).eval()
    theirs.load_state_dict(ours.state_dict())
    pictures = torch.rand(1, 3, 40, 40, generator=fitting.generator(0, 0))
    with torch.no_grad():
        torch.testing.assert_close(ours(pictures), theirs(pictures))


@pytest.mark.parametrize("network", ["resnet18", "resnet50"])
def test_networks_have_stride_8_and_the_size_of_the_picture(network):
    config = AcrConfig(**TINY | {"network": network})
    pictures = torch.zeros(2, 3, 64, 64)
    cams, logits, levels = Classifier(config, 3).eval()(pictures)
    wide = 8 * (4 if network == "resnet50" else 1)
    assert cams.shape == (2, 3, 8, 8) and [level.shape for level in levels] == [
        (2, 2 * wide, 8, 8), (2, 4 * wide, 8, 8), (2, 8, 8, 8)
    ]  # fmt: skip
    torch.testing.assert_close(logits, cams.mean((2, 3)) - math.log(2))
    net = Reconstructor(config, 3).eval()
    logits, features = net(pictures)
    assert logits.shape == (2, 3) and features.shape == (2, 2 + 4 + 8, 64, 64)
    assert net.paint(features).shape == pictures.shape and net.paint(100 * features).abs().max() <= 1


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """An empty folder where downloaded weights lie, and no network."""

    def refuse(*_, **__):
        raise URLError("no network here")

    monkeypatch.setenv("USAM_DATA", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_with_weights_of_torchvision_norm_and_bias_stay_as_they_are(downloads, tmp_path, monkeypatch):
    monkeypatch.setattr(acr, "FLAT", 0)  # so soon, maps may well be
    known = torchvision.models.resnet18()
    known.layer4[1].bn2.running_mean[:] = 3
    torch.save(known.state_dict(), downloads / ResNet18_Weights.IMAGENET1K_V1.url.split("/")[-1])
    start = dict(width=64, weights="IMAGENET1K_V1", alone=0, head_start=0, steps=2)
    model, _ = fitted(tmp_path, **start, rates=(1e-9, 1e-3))
    for net in (model.classifier, model.reconstructor):
        norm = net.resnet.layer4[1].bn2
        assert isinstance(norm, FrozenBatchNorm2d) and norm.running_mean.eq(3).all() and not net.bias.any()
        torch.testing.assert_close(net.resnet.layer1[0].conv1.weight, known.layer1[0].conv1.weight)


# -- training -----------------------------------------------------------------------------------------------------


def test_it_learns(trained):
    model, table = trained
    assert table["step"].tolist() == list(range(1, 61))
    assert table["classes"][-10:].mean() < 0.3 * table["classes"][:5].mean()
    assert table["whole"][-10:].mean() < 0.7 * table["whole"][10:15].mean()  # it begins at the 11th step
    for number in range(100, 108):  # other pictures
        image, inside = shape(number)
        seen = model.activations(image)[number % 2]
        assert model.presence(image).argmax() == number % 2
        assert seen.shape == (40, 48) and seen[inside].mean() > seen[~inside].mean()


def test_reconstructions(trained):
    model, _ = trained
    image, _ = shape(200)
    shown = model.reconstructions(image, 0)
    assert shown.mask.shape == (32, 32) and 0.9 < shown.mask.max() <= 1 and shown.mask.min() >= 0
    assert {part.shape for part in shown[1:]} == {(32, 32, 3)} and {part.dtype for part in shown[1:]} == {
        np.dtype("u1")
    }
    small = square(image, 32).permute(1, 2, 0).numpy() * 255
    np.testing.assert_allclose(shown.segment, small * shown.mask[..., None], atol=1)
    features, mask = model.reconstructor(model._picture(image))[1], torch.from_numpy(shown.mask)
    painted = model.reconstructor.paint(features * (1 - mask))[0].detach().permute(1, 2, 0).numpy()
    np.testing.assert_allclose(shown.from_surroundings, (painted + 1) * 127.5, atol=1)


def test_a_state_is_the_whole_model(trained):
    model, _ = trained
    other = Acr(model.config, 2)
    other.load_state_dict(model.state_dict())
    image, _ = shape(300)
    np.testing.assert_array_equal(other.activations(image), model.activations(image))
    np.testing.assert_array_equal(other.presence(image), model.presence(image))
    np.testing.assert_array_equal(other.reconstructions(image, 1).from_segment, model.reconstructions(image, 1)[2])


def test_interrupted_training_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    whole, table = fitted(tmp_path)
    monkeypatch.setattr(fitting, "SAVE_EVERY", 0)
    step = acr._Training.step

    def broken(training, n):
        if n == 4:
            raise KeyboardInterrupt
        return step(training, n)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(acr._Training, "step", broken)
        fitted(tmp_path)
    assert (tmp_path / "state.pt").exists()
    again, rest = fitted(tmp_path)
    assert rest.equals(table) and not list(tmp_path.iterdir())
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), again.parameters(), strict=True))


def test_terms_come_in_turn_and_the_control_starts_alike(tmp_path):
    _, table = fitted(tmp_path)
    assert table["whole"].isna().tolist() == [True, False, False, False, False]
    assert table["segment"].isna().tolist() == [True, True, False, False, False]
    plain, alone = fitted(tmp_path, plain=True)
    assert list(alone) == ["step", "classes", "spread", "zero"] and len(alone) == len(table)
    same = (alone["classes"] == table["classes"]).tolist()
    assert same == [True, True, True, False, False]  # the third is computed before they part
    assert not any(name.startswith("reconstructor") for name in plain.state_dict())


def test_seeds_decide(tmp_path):
    (one, _), (same, _), (other, _) = (
        fitted(tmp_path, seed=seed, alone=0, head_start=0, steps=1) for seed in (0, 0, 1)
    )
    assert torch.equal(one.classifier.cams.weight, same.classifier.cams.weight)
    assert not torch.equal(one.classifier.cams.weight, other.classifier.cams.weight)


def test_the_classifier_learns_through_its_mask_and_leaves_the_reconstructor_alone():
    model = Acr(AcrConfig(**TINY), 2).train()
    training = acr._Training(model, torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8), torch.eye(2).repeat(2, 1), 0)
    pictures, labels, chosen = training._batch(fitting.generator(0, 0))
    mask, won = segment_of(model.classifier(pictures)[0], labels, chosen, 32)
    losses = training._adversarial(pictures, mask, won)
    sum(losses.values()).backward()
    assert model.classifier.cams.weight.grad.abs().sum() > 0
    assert all(weight.grad is None and weight.requires_grad for weight in model.reconstructor.parameters())


# -- what can go wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(width=32, weights="IMAGENET1K_V1"), "width 32 has no weights in torchvision"),
        (dict(head_start=3), "head_start .3. is a part of alone .2."),
        (dict(grid=64), "grid .64. has more cells than side .32."),
        (dict(features=6), "multiple of 4"),
        (dict(side=34), "side .34. must be a multiple of 4"),
        (dict(painter=()), "at least 1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValidationError, match=message):
        AcrConfig(**TINY | settings)


def user_error(function, *arguments) -> str:
    with pytest.raises(UserError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_networks_and_weights_that_are_not_there(downloads):
    assert "torchvision has no 'vgg16'" in user_error(Acr, AcrConfig(**TINY | {"network": "vgg16"}), 2)
    net = nn.Module()
    missing = AcrConfig(network="resnet18", weights="IMAGENET9")
    assert "resnet18 has no 'IMAGENET9': choose from IMAGENET1K_V1" in user_error(load_weights, net, missing)
    offline = AcrConfig(network="resnet18", weights="IMAGENET1K_V1")
    assert "no network here" in user_error(load_weights, net, offline)
    elsewhere = AcrConfig(network="resnet18", weights="nowhere/resnet.safetensors")
    assert "acr.weights: there is no" in user_error(load_weights, net, elsewhere)
    (downloads / ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2]).write_bytes(b"cut off")
    assert "cannot be loaded from" in user_error(load_weights, net, offline)


def test_weights_of_a_file(tmp_path):
    file = tmp_path / "narrow.safetensors"
    known = resnet("resnet18", 8, FrozenBatchNorm2d)
    save_file(known.state_dict(), file)
    config = AcrConfig(**TINY | {"weights": str(file)})
    net = Classifier(config, 2).resnet
    assert not torch.equal(net.conv1.weight, known.conv1.weight)
    load_weights(net, config)
    torch.testing.assert_close(net.conv1.weight, known.conv1.weight)
    assert published.begins_with(config) == (file,)
    wider = config.model_copy(update={"width": 16})
    assert "is not of resnet18 with width 16" in user_error(load_weights, Classifier(wider, 2).resnet, wider)


def test_collapses_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(acr, "FLAT", 1.0)
    assert "maps are flat" in user_error(fitted, tmp_path)
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": 1.0, "first": 1.0}])
    infinite = {"classes": optimizer.param_groups[0]["params"][0].sum() * math.inf}
    assert "diverged" in user_error(acr._descend, optimizer, infinite, acr.CLASSIFIER, 0)


def test_images_without_a_class_and_a_control_without_a_reconstructor(tmp_path):
    pictures = fitting.Pictures(lambda i: shape(i)[0], torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert "some training images have none" in user_error(Acr(AcrConfig(**TINY), 2).fit, pictures, 0, tmp_path / "s")
    plain = Acr(AcrConfig(**TINY), 2, plain=True)
    assert "no reconstructor" in user_error(plain.reconstructions, shape(0)[0], 0)
