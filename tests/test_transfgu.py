"""TransFGU: its steps by hand and by property, and a tiny training on coloured shapes."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import ViTConfig, ViTImageProcessor, ViTModel
from transformers.models.vit import modeling_vit

from usam.baselines import fitting
from usam.baselines import transfgu_steps as steps
from usam.baselines.fitting import Pictures, square
from usam.baselines.transfgu import Transfgu
from usam.config_rivals import TransfguConfig
from usam.errors import UserError

COLOURS = np.array([[220, 40, 40], [40, 60, 220]])


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> str:
    """A folder with a ViT that knows nothing: 4 x 4 patches of 8 pixels, two layers of two heads."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dino")
    size = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    config = ViTConfig(**size, image_size=32, patch_size=8, initializer_range=0.2)
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    return str(folder)


def shape(i: int) -> np.ndarray:
    """A red or a blue square somewhere on grey noise."""
    rng = np.random.default_rng(i)
    image = rng.integers(100, 156, (40, 48, 3)).astype(np.uint8)
    top, left = rng.integers(0, 20, 2)
    image[top : top + 20, left : left + 20] = COLOURS[i % 2]
    return image


def pictures(count: int = 8) -> Pictures:
    return Pictures(shape, torch.eye(2)[torch.arange(count) % 2])


@pytest.fixture(scope="module")
def config(backbone) -> TransfguConfig:
    return TransfguConfig(
        backbone=backbone, side=32, windows=(0.6,), blocks=1, crop_side=32, views=2, batch=3, steps=12, restarts=(1, 2),
        learning_rate=1e-2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def fitted(config, tmp_path_factory) -> tuple[Transfgu, pd.DataFrame]:
    """A training of three epochs with seed 0, and its table."""
    model = Transfgu(config, 2)
    return model, model.fit(pictures(), 0, tmp_path_factory.mktemp("fit") / "state.pt")


# -- the steps ----------------------------------------------------------------------------------------------------


def test_windows_of_the_original():
    found = list(steps.windows(80, (0.6, 0.5, 0.4, 0.3)))
    assert len(found) == 70 and len(set(found)) == 70
    assert all(min(row, column) >= 0 and max(row, column) + side <= 80 for row, column, side in found)
    for side in (48, 40, 32, 24):  # each size comes to the far edge
        assert max(row + size for row, _, size in found if size == side) == 80


def test_a_window_may_be_the_image_or_a_patch():
    assert list(steps.windows(4, (1.0,))) == [(0, 0, 4)]
    assert [row for row, column, _ in steps.windows(3, (0.01,)) if column == 0] == [0, 1, 2]


def test_top_mass_by_hand():
    values = torch.tensor([[1.0, 4, 2, 3], [0, 0, 0, 0], [8, 2, 0, 0]])
    assert steps.top_mass(values, 0.8).tolist() == [[0, 4, 2, 3], [0, 0, 0, 0], [8, 0, 0, 0]]  # 4 + 3 < 8 of 10


def test_relevance_maps_by_hand():
    attended = torch.tensor([[[0.1, 0.2], [0.4, 0.3]]])
    gradient = torch.tensor([[[[-0.5, 0.7], [-0.4, -0.1]], [[0.0, 0.0], [0.0, 0.1]]]])
    wanted = torch.tensor([[[[0.75, 0.0], [1.4, 0.75]], [[0.25, 0.5], [1.0, 0.0]]]])  # 0.5 + 0.4 > 80% of 1.0
    assert torch.allclose(steps.relevance_maps(attended, gradient), wanted)


def test_pseudo_labels_by_hand():
    maps = torch.tensor([[[[2.0, 10.0, 2.3, 2.7]], [[6.0, 2.0, 2.0, 2.9]]]])  # scaled by (x - 2) / 8
    labels, seen = steps.pseudo_labels(maps)
    assert labels.tolist() == [[[2, 1, 0, 2]]]  # 0.3 / 8 is less than 0.05: background
    assert seen.tolist() == [[[True, True, False, True]]]


def test_flat_maps_are_background():
    labels, seen = steps.pseudo_labels(torch.full((2, 3, 2, 2), 0.7))
    assert not labels.any() and not seen.any()


def test_label_loss_by_hand():
    logits = torch.log(torch.tensor([[1.0, 3.0], [2.0, 2.0]])).T[None, :, None]  # (1, 2, 1, 2): pixels 1:3 and 2:2
    sure = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).T[None, :, None]
    assert steps.label_loss(logits, sure).item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    half = torch.full((1, 2, 1, 2), 0.5)
    assert steps.label_loss(logits, half).item() == pytest.approx((math.log(4) + math.log(4 / 3) + 2 * math.log(2)) / 4)


def test_uncertainty_loss_by_hand():
    pixels = torch.tensor([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0], [0.9, 0.1, 0.0]])  # background does not count
    logits = torch.log(pixels.clamp(min=1e-30)).T[None, :, None]
    seen = torch.tensor([[[True, True, False]]])
    assert steps.uncertainty_loss(logits, seen).item() == pytest.approx((0.8 + 0.0) / 2)
    assert steps.uncertainty_loss(logits, ~seen).item() == pytest.approx(0.9)
    assert steps.uncertainty_loss(logits, seen & False).item() == 0


def test_embedding_loss_by_hand():
    tokens = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [-3.0, 0.0]]])  # cosines 0, -1, 0
    assert steps.embedding_loss(tokens).item() == pytest.approx(2 / 3)
    assert steps.embedding_loss(tokens[:, :1].expand(1, 4, 2)).item() == pytest.approx(2)


def test_bootstrapped_target_and_total_by_hand():
    teacher = torch.log(torch.tensor([0.8, 0.2])).view(1, 2, 1, 1)
    wanted = steps.bootstrapped(teacher, torch.tensor([0.0, 1.0]).view(1, 2, 1, 1))
    assert wanted.flatten().tolist() == pytest.approx([0.4, 0.6])
    losses = dict(
        zip(("label", "shuffled", "uncertainty", "embedding"), torch.tensor([1.0, 2.0, 0.5, 0.25]), strict=True)
    )
    found = [steps.total_loss(losses, done).item() for done in (-0.1, 0.0, 0.5, 1.0)]
    assert found == pytest.approx([1.4, 1.4 - 0.03 * 2, 1.4 - 0.065 * 2, 1.4 - 0.1 * 2])


def test_crops_and_what_lies_under_them_agree():
    cells = torch.randint(0, 5, (6, 2, 8, 8), generator=torch.Generator().manual_seed(0))
    painted = (50 * cells[:, :1]).repeat_interleave(8, 2).repeat_interleave(8, 3).expand(-1, 3, -1, -1)
    crops, below = steps.crop(painted.to(torch.uint8), cells, 48, 8, torch.Generator().manual_seed(1))
    assert crops.shape == (6, 3, 48, 48) and below.shape == (6, 2, 6, 6)
    # compared at pixels with the centres of their cells: a cell of the crop may show several of the picture
    middle = (255 * crops[:, 0]).unflatten(1, (6, 8)).unflatten(3, (6, 8))[:, :, 3:5, :, 3:5].mean((2, 4)) / 50
    assert ((middle - below[:, 0]).abs() < 0.25).float().mean() > 0.8
    assert ((middle - below[:, 0].flip(2)).abs() < 0.25).float().mean() < 0.5  # a mirrored map would not fit
    assert len({tuple(one.flatten().tolist()) for one in below}) == 6


def test_crops_are_of_40_to_90_percent_and_half_of_them_mirrored():
    ramp = torch.arange(32).expand(400, 1, 32, 32)  # each column has its number
    _, below = steps.crop(torch.zeros(400, 3, 32, 32, dtype=torch.uint8), ramp, 32, 1, torch.Generator().manual_seed(2))
    width = (below[:, 0, 0, -1] - below[:, 0, 0, 0]).float() / 31
    assert 0.36 < width.abs().square().min() < 0.46 and 0.84 < width.abs().square().max() < 0.94
    assert 0.4 < (width < 0).float().mean() < 0.6


def test_colours_change_and_shapes_stay():
    batch = torch.full((20, 3, 32, 32), 0.3)
    batch[:, :, :, 16:] = torch.tensor([0.8, 0.5, 0.6]).view(3, 1, 1)
    found = steps.recoloured(batch, torch.Generator().manual_seed(3))
    assert found.shape == batch.shape and found.min() >= 0 and found.max() <= 1
    assert torch.allclose(found[:, :, :, :8], found[:, :, :1, :1].expand(-1, -1, 32, 8), atol=1e-5)  # flat stays flat
    spread = (found[:, :, 0, -1].amax(1) - found[:, :, 0, -1].amin(1)) < 1e-5
    assert 0 < spread.sum() < 12  # some are grey
    assert found[:, 0, 0, 0].unique().numel() > 10
    before = torch.get_rng_state()
    assert torch.equal(found, steps.recoloured(batch, torch.Generator().manual_seed(3)))
    assert torch.equal(before, torch.get_rng_state())  # the global generator is as it was


# -- the model ----------------------------------------------------------------------------------------------------


def test_gradients_reach_the_class_tokens_attention(config, monkeypatch):
    """Against finite differences: the loss with a little more of one weight of the last layer's attention."""
    model = Transfgu(config, 2)
    model.prototypes.copy_(torch.randn(2, 32, generator=torch.Generator().manual_seed(4)))
    given = []
    monkeypatch.setattr(steps, "relevance_maps", lambda attended, gradient: given.append(gradient) or gradient)
    picture = square(shape(0), 32)[None]
    model._relevance(picture)
    last, plain, more = model.backbone.vit.layers[-1].attention, modeling_vit.eager_attention_forward, torch.zeros(17)

    def changed(module, query, key, value, *rest, **options):
        output, weights = plain(module, query, key, value, *rest, **options)
        if module is last:  # all heads alike: the mean over heads of their gradients, times their number
            output[:, 0] += torch.einsum("n,bhnd->bhd", more, value)
        return output, weights

    monkeypatch.setattr(modeling_vit, "eager_attention_forward", changed)
    for patch in (0, 5, 15):
        losses = []
        for amount in (0.05, -0.05):
            more.zero_()[1 + patch] = amount
            losses.append(1 - cosine_similarity(model.backbone(picture)[0], model.prototypes))
        slope = (losses[0] - losses[1]).detach() / 0.1 / model.backbone.heads
        assert torch.allclose(given[0][0].flatten(1)[:, patch], slope, rtol=0.05, atol=1e-4)
    assert given[0].abs().max() > 1e-3


def test_maps_do_not_depend_on_the_batch(config):
    model = Transfgu(config, 3)
    model.prototypes.copy_(torch.randn(3, 32, generator=torch.Generator().manual_seed(5)))
    together = model._relevance(torch.stack([square(shape(i), 32) for i in range(3)]))
    alone = model.relevance(shape(1))
    assert alone.shape == (3, 4, 4) and alone.dtype == np.float32 and alone.min() >= 0
    np.testing.assert_allclose(together[1].numpy(), alone, rtol=1e-3, atol=1e-5)
    assert not np.allclose(alone[0], alone[1])  # prototypes have maps of their own


def test_windows_on_the_foreground_alone_count(config, monkeypatch):
    """The left half is looked at: of windows half as wide as the image, those at the left edge are mostly in it."""
    model = Transfgu(config.model_copy(update={"windows": (0.5,)}), 2)
    looked_at = torch.zeros(1, 8, 8)
    looked_at[..., :4] = 1
    monkeypatch.setattr(type(model.backbone), "looked_at", lambda *_: looked_at)
    picture = torch.zeros(3, 64, 64)
    picture[:, :, 32:] = 1
    tokens = model._windows(picture)
    black = model._see(torch.zeros(1, 3, 32, 32))[0].float()
    assert tokens.shape == (3, 32) and torch.allclose(tokens, black.expand(3, -1), atol=0.05)
    looked_at[:] = 1  # all alike: nothing stands out
    assert model._windows(picture).shape == (0, 32)


def test_each_epoch_has_its_view_until_they_come_again(config):
    model, images = Transfgu(config, 2), torch.stack([torch.from_numpy(shape(i)[:32, :32]) for i in range(8)])
    cells = torch.arange(8 * 32).reshape(8, 2, 4, 4)
    examples = model._examples(images.movedim(-1, 1), cells, 0)
    rows, chance = torch.tensor([6, 1]), torch.Generator()
    views = [examples(rows, epoch, chance) for epoch in range(3)]
    assert all(torch.equal(one, two) for one, two in zip(views[0], views[2], strict=True))
    assert not torch.equal(views[0][1], views[1][1]) and not torch.equal(views[0][0], views[1][0])
    for features, labels, high in views:
        assert features.shape == (2, 4, 4, 32) and features.dtype == torch.float32
        assert ((labels // 32).flatten(1) == rows[:, None]).all()  # the maps of these pictures
        assert torch.equal(high, labels + 16)


def test_the_backbone_is_frozen_and_no_part_of_the_state(config, fitted):
    model, before = fitted[0], Transfgu(config, 2).backbone.state_dict()
    assert all(torch.equal(before[name], value) for name, value in model.backbone.state_dict().items())
    assert all(name == "prototypes" or name.startswith("decoder.") for name in model.state_dict())


def test_training_learns_its_pseudo_labels(config, tmp_path):
    longer = config.model_copy(update={"batch": 8, "steps": 120, "restarts": (60,)})
    model = Transfgu(longer, 2)
    table = model.fit(pictures(), 2, tmp_path / "state.pt")
    assert list(table) == ["step", "label", "shuffled", "uncertainty", "embedding"] and len(table) == 120
    first, second = table[:60], table[60:]
    for part in (first, second):
        assert part["label"][-5:].mean() < part["label"][:5].mean() - 0.15
        assert part["embedding"].iloc[-1] < part["embedding"].iloc[0] - 0.15
    assert (first["shuffled"] == 0).all() and (second["shuffled"] > 0).all()
    labels = np.stack([model.pseudo_label(shape(i)) for i in range(8)])
    found = np.stack([model.segment(shape(i)) for i in range(8)])
    assert found.dtype == labels.dtype == np.int64 and found.shape == (8, 4, 4)
    assert (found == labels).mean() > np.bincount(labels.ravel()).max() / labels.size + 0.05


def test_the_student_starts_again_and_the_teacher_stays(config, tmp_path, monkeypatch):
    """With one batch an epoch and one view, a restart brings back the very first losses of the decoder itself."""
    monkeypatch.setattr(steps, "DROPOUT", 0.0)
    one = config.model_copy(update={"batch": 8, "views": 1, "steps": 6, "restarts": (2, 4)})
    table = Transfgu(one, 2).fit(pictures(), 2, tmp_path / "state.pt")
    for n in (2, 4):
        for name in ("uncertainty", "embedding"):
            assert table[name][n] == pytest.approx(table[name][0], abs=1e-4)
            assert table[name][n - 1] != pytest.approx(table[name][0], abs=1e-3)
        assert table["label"][n] != pytest.approx(table["label"][0], abs=1e-3)  # the teacher speaks, too


@pytest.mark.parametrize("views", [2, None])
def test_interrupted_training_goes_on_to_the_same_numbers(config, tmp_path, monkeypatch, views):
    config = config.model_copy(update={"views": views})
    whole = Transfgu(config, 2)
    table = whole.fit(pictures(), 0, tmp_path / "other.pt")
    monkeypatch.setattr(fitting, "SAVE_EVERY", 0)
    plain, calls = steps.total_loss, []

    def stops(losses, done):
        calls.append(done)
        if len(calls) == 6:  # after the first restart
            raise KeyboardInterrupt
        return plain(losses, done)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(steps, "total_loss", stops)
        Transfgu(config, 2).fit(pictures(), 0, tmp_path / "state.pt")
    torch.manual_seed(99)  # the world's chance has no say
    again = Transfgu(config, 2)
    rest = again.fit(pictures(), 0, tmp_path / "state.pt")
    assert rest.equals(table) and not list(tmp_path.iterdir())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


def test_another_seed_is_another_training(config, fitted, tmp_path):
    other = Transfgu(config, 2).fit(pictures(), 2, tmp_path / "state.pt")
    assert not np.allclose(fitted[1]["label"], other["label"], atol=1e-3)


def test_a_loaded_state_predicts_the_same(config, fitted, tmp_path):
    model = fitted[0]
    torch.save(model.state_dict(), tmp_path / "model.pt")
    again = Transfgu(config, 2)
    again.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    for i in range(3):
        logits = model.logits(shape(i))
        assert logits.shape == (3, 4, 4) and logits.dtype == np.float32
        np.testing.assert_array_equal(logits, again.logits(shape(i)))
        np.testing.assert_array_equal(model.segment(shape(i)), logits.argmax(0))
        np.testing.assert_array_equal(model.relevance(shape(i)), again.relevance(shape(i)))


# -- what goes wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "classes", "message"),
    [
        ({"side": 36}, 2, r"side 36 and crop_side 32 must be multiples of 8"),
        ({"crop_side": 20}, 2, r"side 32 and crop_side 20 must be multiples of 8"),
        ({}, 1, r"1 is too few"),
    ],
)
def test_settings_that_do_not_fit(config, change, classes, message):
    with pytest.raises(UserError, match=message):
        Transfgu(config.model_copy(update=change), classes)


def test_restarts_after_the_end(config, tmp_path):
    with pytest.raises(UserError, match=r"ends after 4 epochs, .* restarts \(1, 4\)"):
        Transfgu(config.model_copy(update={"restarts": (1, 4)}), 2).fit(pictures(), 0, tmp_path / "state.pt")


def test_too_few_windows(config, tmp_path):
    with pytest.raises(UserError, match=r"different windows show an object, too few for 900 prototypes"):
        Transfgu(config, 900).fit(pictures(), 0, tmp_path / "state.pt")


def test_equal_prototypes_are_a_collapse(config, tmp_path, monkeypatch):
    monkeypatch.setattr(Transfgu, "_windows", lambda *_: torch.full((3, 32), 0.5) + 1e-5 * torch.rand(3, 32))
    with pytest.raises(UserError, match=r"1 different windows .* too few for 2 prototypes"):
        Transfgu(config, 2).fit(pictures(), 0, tmp_path / "state.pt")


def test_flat_maps_are_a_collapse(config, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "relevance_maps", lambda attended, gradient: torch.ones_like(gradient))
    with pytest.raises(UserError, match=r"pseudo labels are all background"):
        Transfgu(config, 2).fit(pictures(), 0, tmp_path / "state.pt")


def test_one_cluster_everywhere_is_a_collapse(config, tmp_path, monkeypatch):
    plain = Transfgu._logits
    monkeypatch.setattr(Transfgu, "_logits", lambda self, some: plain(self, some) + 99 * torch.eye(3)[1].view(3, 1, 1))
    with pytest.raises(UserError, match=r"the decoder's pixels are all cluster 1"):
        Transfgu(config, 2).fit(pictures(), 0, tmp_path / "state.pt")
