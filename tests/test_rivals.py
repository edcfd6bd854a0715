"""The rivals as methods: what they learn from, what they may see, how they are named, what is kept."""

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from usam.config_rivals import RivalsConfig
from usam.errors import UserError
from usam.pipeline import rivals, scoring, stages
from usam.profiles import Profile
from usam.registry import METHODS

ALL = [name for name, place in METHODS.items() if place.startswith("usam.pipeline.rivals:")]


@pytest.fixture(scope="module")
def vit(tmp_path_factory) -> str:
    """The folder of a random ViT."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    ViTModel(ViTConfig(**sizes, image_size=64, patch_size=8), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def profile(tiny: Profile, vit) -> Profile:
    """Two classes, images of the web and of a training split, rivals of a few steps, no check for a collapse."""
    voc = tiny.datasets["voc"].model_copy(update={"train": "train", "images": {"test": 2, "val": 2, "train": 4}})
    settings = {
        "leopart": dict(backbone=vit, side=64, crop_sides=[48, 32], small_crops=1, cells=2, head=[16, 8],
                        prototypes=8, queue=16, steps=2, batch=2, rates=[1e-4, 1e-3]),
        "transfgu": dict(backbone=vit, side=64, windows=[0.6, 0.4], blocks=1, crop_side=32, views=1, batch=2, steps=4,
                         restarts=[1], learning_rate=1e-3),
        "acr": dict(network="resnet18", weights=None, width=8, features=8, painter=[8, 8], side=32, grid=4, batch=2,
                    alone=2, head_start=1, steps=2, rates=[1e-3, 1e-3]),
    }  # fmt: skip
    found = RivalsConfig.model_validate_json(json.dumps(settings))
    return tiny.model_copy(update={"datasets": {"voc": voc}, "sources": {"web": tiny.sources["web"]}, "rivals": found})


@pytest.mark.parametrize("source", ["web", rivals.IN_DOMAIN])
def test_every_rival_labels_every_pixel_of_an_image(profile, source):
    example = stages.dataset(profile, "voc")[0]
    for name in ALL:
        ready = METHODS.find(name)(profile, "voc", source, 0)
        found = ready.annotate(example, None)
        assert found.shape == example.semantic.shape and found.dtype == np.uint8 and found.max() <= 2, name
        assert ready.training_seconds >= 0 and (ready.annotate(example, None) == found).all(), name


def test_training_shows_each_class_of_a_scene_and_names_of_images(profile):
    shown = rivals.pictures(profile, "voc", rivals.IN_DOMAIN)
    scenes = stages.dataset(profile, "voc", "train")
    truth = [[(scenes[i].semantic == j + 1).any() for j in range(2)] for i in range(len(scenes))]
    assert shown.labels.tolist() == [list(map(float, one)) for one in truth if any(one)]
    first = next(i for i, one in enumerate(truth) if any(one))
    assert (shown.image(0) == scenes[first].image).all()
    web = rivals.pictures(profile, "voc", "web")
    table = stages.training_images(profile, "web", ["car", "dog"]).table
    assert web.labels.argmax(1).tolist() == [["car", "dog"].index(name) for name in table["class"]]
    assert web.labels.sum(1).eq(1).all()


def test_nothing_but_oracle_names_sees_a_test_image(profile, monkeypatch):
    stages.dataset(profile, "voc")
    ours = stages.dataset

    def without_tests(p, dataset_name, split=None):
        assert split in ("train", "val"), "a test image was asked for"
        return ours(p, dataset_name, split)

    monkeypatch.setattr(stages, "class_names", lambda p, dataset_name: ["car", "dog"])
    monkeypatch.setattr(stages, "dataset", without_tests)
    for name in ALL:
        sees = name in ("Leopart", "k-means on DINO", "TransFGU")  # ACR's oracle asks each test image when it comes
        make = METHODS.find(name)
        if sees:
            with pytest.raises(AssertionError, match="a test image"):
                make(profile, "voc", "web", 0)
        else:
            make(profile, "voc", "web", 0)


def test_a_fit_is_kept_and_another_seed_or_setting_is_another_one(profile, monkeypatch):
    first = rivals.fitted(profile, "TransFGU", "voc", "web", 0)
    with monkeypatch.context() as patch:
        patch.setattr(rivals.Transfgu, "fit", None)
        again = rivals.fitted(profile, "TransFGU", "voc", "web", 0)
        for changed, seed in (profile, 1), (profile.changed({"rivals.transfgu.steps": 5}), 0):
            with pytest.raises(TypeError):
                rivals.fitted(changed, "TransFGU", "voc", "web", seed)
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    assert again.history["step"].tolist() == [1, 2, 3, 4] and again.seconds == first.seconds


def test_a_damaged_fit_is_made_again(profile, tmp_path):
    first = rivals.fitted(profile, "ACR", "voc", "web", 0)
    (file,) = tmp_path.rglob("ACR-*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    again = rivals.fitted(profile, "ACR", "voc", "web", 0)
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


def test_oracle_names_follow_the_truth_of_the_test_images(profile, monkeypatch):
    data, swapped = stages.dataset(profile, "voc"), np.arange(256, dtype=np.uint8)
    swapped[1:3] = 2, 1

    class Swapped:
        """The same images, with the two classes swapped in their truth."""

        name, class_names, image = data.name, data.class_names, data.image

        def __len__(self):
            return len(data)

        def __getitem__(self, i):
            example = data[i]
            return type(example)(example.image_id, example.image, swapped[example.semantic], example.instances)

    before = METHODS.find("TransFGU")(profile, "voc", "web", 0).annotate(data[0], None)
    other = Swapped()
    monkeypatch.setattr(stages, "class_names", lambda p, dataset_name: ["car", "dog"])
    monkeypatch.setattr(rivals.stages, "dataset", lambda p, name, split=None: other)
    after = METHODS.find("TransFGU")(profile, "voc", "web", 0).annotate(data[0], None)
    assert (after == swapped[before]).all()


def test_rows_of_rivals_have_no_mean_average_precision(profile, tmp_path, monkeypatch):
    monkeypatch.setenv("USAM_RESULTS", str(tmp_path / "results"))
    scores = scoring.score(profile, "voc", rivals.IN_DOMAIN, 0, "TransFGU, deployable names")
    assert 0 <= scores.miou <= 1 and np.isnan(scores.map50)


def test_enlarged_labels_are_not_mixed():
    labels = np.array([[0, 2], [1, 0]])
    assert rivals.enlarged(labels, (4, 4)).tolist() == labels.repeat(2, 0).repeat(2, 1).tolist()
    assert set(np.unique(rivals.enlarged(labels, (7, 5)))) == {0, 1, 2}


def test_what_is_missing_is_said(profile):
    with pytest.raises(UserError, match=r"'smoke' has no key 'rivals'"):
        rivals.fitted(profile.model_copy(update={"rivals": None}), "ACR", "voc", "web", 0)
    voc = profile.datasets["voc"]
    for key, method, message in (
        ("train", "ACR", "'voc' has no training split"),
        ("validation", "ACR", "no data set with a validation split: ACR needs thresholds"),
    ):
        lacking = profile.model_copy(update={"datasets": {"voc": voc.model_copy(update={key: None})}})
        with pytest.raises(UserError, match=message):
            METHODS.find(method)(lacking, "voc", rivals.IN_DOMAIN, 0)
    with pytest.raises(ValidationError):
        profile.changed({"rivals.leopart.cluster": 3})
