"""Leopart: assignment, alignment, foreground and loss by hand, and a small training."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import ndimage
from scipy.special import logsumexp
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, homogeneity_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from usam.baselines import fitting, leopart
from usam.baselines.fitting import Pictures, square
from usam.baselines.leopart import Clusters, Leopart
from usam.config_rivals import LeopartConfig
from usam.errors import UserError

SIDE, PATCH = 64, 8


def save_vit(folder: Path, gain: float = 1.0) -> str:
    """A random ViT of two layers; its features are the same everywhere if the `gain` of its last layer is 0."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    vit = ViTModel(ViTConfig(**sizes, image_size=SIDE, patch_size=PATCH), add_pooling_layer=False)
    vit.layernorm.weight.data.mul_(gain)
    vit.save_pretrained(folder)
    ViTImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> str:
    return save_vit(tmp_path_factory.mktemp("vit"))


def settings(backbone: str, **changes) -> LeopartConfig:
    small = dict(side=SIDE, crop_sides=(48, 32), small_crops=2, cells=3, head=(32, 16), prototypes=8, queue=50)
    return LeopartConfig(
        backbone=backbone, **small | dict(batch=4, steps=3, rates=(5e-4, 5e-3), momentum=0.9) | changes
    )


def picture(n: int) -> tuple[np.ndarray, np.ndarray]:
    """A mosaic of four colours with some noise (64, 64, 3) uint8, and the colour of each patch (8, 8)."""
    rng = np.random.default_rng(n)
    tiles = rng.integers(0, 4, (4, 4))
    colours = np.array([(120, 120, 120), (220, 40, 40), (40, 200, 40), (40, 40, 220)])
    image = colours[tiles].repeat(16, 0).repeat(16, 1) + rng.integers(-20, 20, (SIDE, SIDE, 3))
    return image.astype(np.uint8), tiles.repeat(2, 0).repeat(2, 1)


def pictures(count: int = 8, start: int = 0) -> Pictures:
    return Pictures(lambda n: picture(start + n)[0], torch.zeros(count, 2))


# -- assignment -----------------------------------------------------------------------------------------------------


def test_one_iteration_of_sinkhorn_by_hand():
    # exp(scores / 0.05) = [[4, 1], [1, 1]]: columns by 5 and 2, then rows by 0.8 + 0.5 and 0.2 + 0.5
    scores = 0.05 * torch.tensor([[4.0, 1.0], [1.0, 1.0]]).log()
    wanted = torch.tensor([[0.8 / 1.3, 0.5 / 1.3], [0.2 / 0.7, 0.5 / 0.7]])
    torch.testing.assert_close(leopart.sinkhorn(scores, 1), wanted)


def test_sinkhorn_comes_to_the_solution():
    # of [[a, b], [c, d]], rows and columns of sum 1: √(ad) / (√(ad) + √(bc)) = 2 / 3 on the diagonal
    scores = 0.05 * torch.tensor([[4.0, 1.0], [1.0, 1.0]]).log()
    torch.testing.assert_close(leopart.sinkhorn(scores, 60), torch.tensor([[2.0, 1.0], [1.0, 2.0]]) / 3)


def test_sinkhorn_is_that_of_logarithms():
    scores = np.random.default_rng(0).uniform(-1, 1, (40, 6))
    logs = scores / 0.05
    for _ in range(3):
        logs = logs - logsumexp(logs, 0)
        logs = logs - logsumexp(logs, 1, keepdims=True)
    found = leopart.sinkhorn(torch.tensor(scores, dtype=torch.float32))
    np.testing.assert_allclose(found, np.exp(logs), atol=1e-5)
    torch.testing.assert_close(found.sum(1), torch.ones(40))
    balanced = leopart.sinkhorn(torch.tensor(scores, dtype=torch.float32), 2000)
    torch.testing.assert_close(balanced.sum(0), torch.full((6,), 40 / 6), atol=0.02, rtol=0)


def test_the_queue_takes_foreground_and_takes_part_once_full(vit):
    model = Leopart(settings(vit, queue=3), 2)
    torch.manual_seed(0)
    model.teacher.prototypes.data = torch.nn.functional.normalize(torch.randn(8, 16))
    unit = torch.nn.functional.normalize(torch.randn(1, 2, 2, 16), dim=-1)
    rows, queue = unit.reshape(4, 16), model.queue[0]
    alone = model._codes(queue, unit, torch.tensor([[[True, False], [False, True]]]))
    wanted = leopart.sinkhorn(rows @ model.teacher.prototypes.T)
    torch.testing.assert_close(alone[0].flatten(1).T, wanted)
    assert {tuple(row) for row in queue.tolist()} == {tuple(row) for row in [*rows[[0, 3]].tolist(), [0.0] * 16]}
    again = model._codes(queue, unit, torch.tensor([[[True, False], [False, False]]]))
    torch.testing.assert_close(again, alone)  # it was not full
    before = queue.clone()
    torch.testing.assert_close(before[0], rows[0])  # the newest comes first
    with_queue = model._codes(queue, unit, torch.ones(1, 2, 2, dtype=torch.bool))
    wanted = leopart.sinkhorn(torch.cat([before, rows]) @ model.teacher.prototypes.T)[3:]
    torch.testing.assert_close(with_queue[0].flatten(1).T, wanted)
    assert not torch.allclose(with_queue, alone)


# -- crops ----------------------------------------------------------------------------------------------------------


def test_crops_have_their_sizes_and_share_enough():
    torch.manual_seed(0)
    areas = []
    for _ in range(40):
        found = leopart.boxes(100, 3).long()
        assert found.min() >= 0 and found.max() <= 100
        masks = torch.zeros(5, 100, 100, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(masks, found.tolist(), strict=True):
            mask[top:bottom, left:right] = True
        common = (masks[:, None] & masks[None, :2]).sum((2, 3))
        assert common[0, 1] > 200 and common[2:].min() > 100
        areas.append(masks.sum((1, 2)))
    areas = torch.stack(areas) / 1e4
    assert 0.24 < areas[:, :2].min() < 0.35 and areas[:, :2].max() > 0.85
    assert 0.04 < areas[:, 2:].min() < 0.09 and 0.21 < areas[:, 2:].max() < 0.26


def test_common_part_by_hand():
    one, other = torch.tensor([0.0, 2, 6, 8]), torch.tensor([4.0, 0, 9, 5])
    assert leopart.overlap(one, other).tolist() == [4, 2, 6, 5]


def test_crops_are_aligned():
    """Maps that hold the image's own x and y say the same in both crops, and where the cells are."""
    crops = torch.tensor([[[0.0, 0, 80, 60], [20, 10, 90, 100]], [[10.0, 20, 70, 80], [0, 0, 64, 64]]])  # (B, V, 4)
    maps = []
    for crop in crops.unbind(1):
        middle = (torch.arange(32) + 0.5) / 32
        x = crop[:, :1] + (crop[:, 2:3] - crop[:, :1]) * middle
        y = crop[:, 1:2] + (crop[:, 3:] - crop[:, 1:2]) * middle
        maps.append(torch.stack([x[:, None].expand(-1, 32, -1), y[:, :, None].expand(-1, -1, 32)], 1))
    common = leopart.overlap(crops[:, 0], crops[:, 1])
    first, second = (leopart.align(one, crop, common, 5) for one, crop in zip(maps, crops.unbind(1), strict=True))
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # half a pixel of a border has no neighbour
    torch.testing.assert_close(first[inner], second[inner], atol=1e-3, rtol=0)
    cells = 20 + 60 * (torch.arange(5) + 0.5) / 5  # in x, the first image's crops share 20 to 80
    torch.testing.assert_close(first[0, 0, 2, 1:-1], cells[1:-1], atol=1e-3, rtol=0)


# -- loss -----------------------------------------------------------------------------------------------------------


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_swapped_loss_by_hand():
    scores = torch.tensor([[0.1, 0.0, 0.3], [0.0, 0.1, 0.0]]).view(1, 2, 1, 3)
    codes = torch.tensor([[0.75, 0.5, 0.0], [0.25, 0.5, 1.0]]).view(1, 2, 1, 3)
    # scores / 0.1 differ by 1, -1, 3: -log p of the first prototype is softplus(-1), softplus(1), softplus(-3)
    first = 0.75 * softplus(-1) + 0.25 * softplus(1)
    second = 0.5 * softplus(1) + 0.5 * softplus(-1)
    seen = torch.tensor([[[True, True, False]]])
    assert leopart.swapped_loss(scores, codes, seen).item() == pytest.approx((first + second) / 2)
    everything = leopart.swapped_loss(scores, codes, torch.ones_like(seen)).item()
    assert everything == pytest.approx((first + second + softplus(3)) / 3)
    assert leopart.swapped_loss(scores, codes, torch.zeros_like(seen)).item() == 0


def flat(values: list[float], n: int) -> torch.Tensor:
    """Maps (1, K, n, n) of one value each."""
    return torch.tensor(values).view(1, -1, 1, 1).expand(-1, -1, n, n)


def test_loss_by_hand():
    """Maps of one value everywhere, two large crops and a small one: four pairs."""
    crops = torch.tensor([[[0.0, 0, 8, 8], [2, 2, 10, 10], [3, 3, 6, 6]]])
    differences = (1.0, 2.0, -1.0)  # of the two prototypes' scores / 0.1
    scores = [flat([0.1 * one, 0.0], 4) for one in differences]
    codes = [flat([1.0, 0.0], 4), flat([0.0, 1.0], 4)]
    everywhere = torch.ones(1, 4, 4, dtype=torch.bool)
    pairs = [softplus(-2), softplus(1), softplus(1), softplus(-1)]  # codes 0 with crops 1, 2; codes 1 with 0, 2
    assert leopart.loss_of(scores, codes, [everywhere] * 2, crops, 2).item() == pytest.approx(sum(pairs) / 4)
    nothing = [everywhere, ~everywhere]
    assert leopart.loss_of(scores, codes, nothing, crops, 2).item() == pytest.approx(sum(pairs[:2]) / 4)


def test_cells_count_that_are_foreground_throughout():
    """Only the left half of the image is foreground; the codes are wrong in the right half alone."""
    crops = torch.tensor([[[0.0, 0, 8, 8], [0, 0, 8, 8], [0, 0, 8, 8]]])
    left = torch.zeros(1, 8, 8, dtype=torch.bool)
    left[..., :4] = True
    codes = torch.stack([left, ~left], 1).float()
    scores = flat([3.0, 0.0], 8)  # sure of the first prototype
    assert leopart.loss_of([scores] * 3, [codes] * 2, [left] * 2, crops, 2).item() < 1e-6
    assert leopart.loss_of([scores] * 3, [codes] * 2, [torch.ones_like(left)] * 2, crops, 2).item() > 10


# -- foreground -----------------------------------------------------------------------------------------------------


def test_foreground_is_that_of_scipy():
    attention = np.random.default_rng(3).random((4, 12, 12)) ** 8
    found = leopart.foreground_of(torch.tensor(attention, dtype=torch.float32)).numpy()
    for one, mask in zip(attention, found, strict=True):
        blurred = ndimage.gaussian_filter(one, 0.6, mode="mirror", radius=3)
        order = np.argsort(-blurred.ravel())
        mass = np.cumsum(blurred.ravel()[order]) / blurred.sum()
        wanted = np.zeros(144, bool)
        wanted[order[: 1 + np.searchsorted(mass, 0.6)]] = True
        labels, count = ndimage.label(wanted.reshape(12, 12), np.ones((3, 3)))
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        np.testing.assert_array_equal(mask, (sizes >= 3)[labels] & (labels > 0))


def test_specks_are_no_foreground():
    attention = torch.zeros(1, 12, 12)
    attention[0, 2:6, 2:6], attention[0, 9, 9] = 1.0, 4.0
    found = leopart.foreground_of(attention)[0]
    assert found[3:5, 3:5].all() and not found[7:, 7:].any()


# -- training -------------------------------------------------------------------------------------------------------


def test_contrast_by_hand():
    assert leopart.contrast(torch.tensor([[0.3, 0.1], [0.3, 0.1]])) == pytest.approx(0, abs=1e-7)  # features are alike
    assert leopart.contrast(torch.tensor([[0.3, 0.3], [0.1, 0.1]])) == pytest.approx(0, abs=1e-7)  # prototypes are
    # [[1, 0], [0, 1]] centred: ±1/2
    assert leopart.contrast(torch.eye(2)) == pytest.approx(0.5 * math.sqrt(4 / 3))


def test_schedules_by_hand(vit, tmp_path, monkeypatch):
    """Two steps: cosines at 1 and 1/2 of the way from their first value; the teacher follows by (1 - 0.9) and half."""
    seen, step = [], torch.optim.AdamW.step
    model = Leopart(settings(vit, steps=2), 2)

    def watched(optimizer, *arguments):
        seen.append([(group["lr"], group["weight_decay"]) for group in optimizer.param_groups])
        before = model.teacher.head[0].weight.clone()
        step(optimizer, *arguments)
        seen[-1].append((before, model.student.head[0].weight.clone()))

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    model.fit(pictures(), 0, tmp_path / "state.pt")
    assert set(seen[0][:-1]) == {(5e-4, 0.04), (5e-4, 0.0), (5e-3, 0.04), (5e-3, 0.0)}
    assert set(seen[1][:-1]) == {(2.5e-4, 0.27), (2.5e-4, 0.0), (2.5e-3, 0.27), (2.5e-3, 0.0)}
    (first, student), (second, later) = seen[0][-1], seen[1][-1]
    torch.testing.assert_close(second, 0.9 * first + 0.1 * student)
    torch.testing.assert_close(model.teacher.head[0].weight, 0.95 * second + 0.05 * later)
    assert not torch.equal(first, student)
    for network in (model.student, model.teacher):
        torch.testing.assert_close(network.prototypes.norm(dim=1), torch.ones(8))


def test_interrupted_training_goes_on_to_the_same_numbers(vit, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "SAVE_EVERY", 0)
    whole = Leopart(settings(vit, steps=3), 2)
    table = whole.fit(pictures(), 3, tmp_path / "whole.pt")
    calls, loss_of = [], leopart.loss_of

    def broken(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return loss_of(*arguments)

    monkeypatch.setattr(leopart, "loss_of", broken)
    with pytest.raises(KeyboardInterrupt):
        Leopart(settings(vit, steps=3), 2).fit(pictures(), 3, tmp_path / "state.pt")
    torch.rand(7)  # chance from elsewhere
    again = Leopart(settings(vit, steps=3), 2)
    assert again.fit(pictures(), 3, tmp_path / "state.pt").equals(table) and len(calls) == 4
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    other = Leopart(settings(vit, steps=1), 2).fit(pictures(), 4, tmp_path / "other.pt")
    assert other["loss"][0] != table["loss"][0]


@pytest.fixture(scope="module")
def fitted(vit, tmp_path_factory):
    """Colours stay as they are here: a ViT without training knows nothing else.

    With crops or maps that do not belong together, the loss stays above 2, and prototypes mix colours (0.6 at most).
    """
    model = Leopart(settings(vit, steps=24, batch=6, clusters=4), 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leopart, "OTHER_LOOK", lambda crop: crop)
        return model, model.fit(pictures(), 0, tmp_path_factory.mktemp("state") / "state.pt")


def test_it_learns(fitted):
    _, table = fitted
    assert table["step"].tolist() == list(range(1, 25))
    no_idea = math.log(8)  # the loss of a student who says nothing
    assert table["loss"].head(3).mean() > no_idea - 0.2 and table["loss"].tail(5).mean() < no_idea - 0.3
    assert table["foreground"].between(0.5, 0.75).all() and table["used"].iloc[-1] == 8


def test_clusters_and_prototypes_are_colours(fitted):
    """On pictures that it has not seen."""
    model, _ = fitted
    some = [picture(n) for n in range(100, 108)]
    found, codes = (np.stack([look(image) for image, _ in some]) for look in (model.clusters, model.codes))
    truth = np.stack([colours for _, colours in some])
    assert found.shape == (8, 8, 8) and found.dtype == np.int64 and set(found.flat) == {0, 1, 2, 3}
    assert adjusted_rand_score(truth.ravel(), found.ravel()) > 0.9
    assert homogeneity_score(truth.ravel(), codes.ravel()) > 0.75  # eight prototypes, four colours


def test_what_it_shows(fitted):
    model, _ = fitted
    image, _ = picture(200)
    codes, seen = model.codes(image), model.looked_at(image)
    assert codes.shape == seen.shape == (8, 8) and codes.dtype == np.int64 and seen.dtype == bool
    assert set(codes.flat) <= set(range(8)) and 0 < seen.sum() < 64
    assert model.clusters(np.zeros((30, 50, 3), np.uint8)).shape == (8, 8)  # whatever its shape


def test_a_fitted_model_travels_in_its_state_dict(fitted, vit, tmp_path):
    model, _ = fitted
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = Leopart(settings(vit, clusters=4), 2)
    image = picture(201)[0]
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    for look in ("clusters", "codes", "looked_at"):
        np.testing.assert_array_equal(getattr(other, look)(image), getattr(model, look)(image))


def test_clusters_of_other_pictures_leave_its_own_alone(fitted):
    model, _ = fitted
    image, _ = picture(100)
    before = model.clusters(image)
    found = model.finish(pictures(8, start=100), 5, 1)
    others = [model.clusters(picture(n)[0], found) for n in range(100, 108)]
    assert set(np.ravel(others)) == set(range(5))
    np.testing.assert_array_equal(model.clusters(image), before)


def test_without_steps_it_is_k_means_of_dino(vit, tmp_path):
    model = Leopart(settings(vit, steps=0, clusters=4), 2)
    weights = {name: value.clone() for name, value in model.student.backbone.state_dict().items()}
    assert len(model.fit(pictures(), 0, tmp_path / "state.pt")) == 0
    assert all(torch.equal(value, weights[name]) for name, value in model.student.backbone.state_dict().items())
    with torch.no_grad():
        squares = torch.stack([square(picture(n)[0], SIDE) for n in range(8)])
        features = model.student(squares)[0].reshape(-1, 32).numpy()
    parts = make_pipeline(StandardScaler(), PCA(32), KMeans(4, n_init=20, random_state=5))
    found = np.concatenate([model.clusters(picture(n)[0]).ravel() for n in range(8)])
    assert adjusted_rand_score(parts.fit_predict(features), found) > 0.9


def test_k_means_sees_a_part_of_many_patches(vit, monkeypatch):
    model = Leopart(settings(vit), 2)
    seen, fit = [], KMeans.fit
    monkeypatch.setattr(leopart, "PATCHES", 8 * 10)
    monkeypatch.setattr(KMeans, "fit", lambda self, rows: seen.append(rows.shape) or fit(self, rows))
    found = model.finish(pictures(), 3, 0)
    assert seen == [(80, 32)] and isinstance(found, Clusters) and found.centres.shape == (3, 32)


# -- what the user can fix ------------------------------------------------------------------------------------------


def test_a_collapse_is_an_error(tmp_path):
    flat = save_vit(tmp_path / "flat", gain=0.0)
    with pytest.raises(UserError, match="leopart has collapsed"):
        Leopart(settings(flat, steps=1), 2).fit(pictures(), 0, tmp_path / "state.pt")
    with pytest.raises(UserError, match="all alike"):
        Leopart(settings(flat, steps=0), 2).fit(pictures(), 0, tmp_path / "state.pt")


def test_too_few_patches(vit):
    with pytest.raises(UserError, match="too few"):
        Leopart(settings(vit), 2).finish(pictures(1), 65, 0)


def test_sides_are_patches(vit):
    for wrong in ({"side": 60}, {"crop_sides": (48, 30)}, {"crop_sides": (48, 24)}):
        with pytest.raises(UserError, match="times 8 pixels"):
            Leopart(settings(vit, **wrong), 2)


def test_no_such_backbone():
    with pytest.raises(UserError, match="no model folder"):
        Leopart(settings("miniature/weights/dina"), 2)


def test_settings_that_make_no_sense():
    for wrong in ({"head": ()}, {"clusters": 1}, {"prototypes": 1}, {"momentum": 1.0}, {"steps": -1}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            settings("anything", **wrong)
