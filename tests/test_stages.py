"""Stages: what is made, what is reused, what is left alone."""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from usam import paths
from usam.data.class_names import VOC
from usam.errors import UserError
from usam.files import writing
from usam.method.masks import mask_iou, rle_to_masks, to_image_size
from usam.method.training import train
from usam.pipeline import scoring, stages
from usam.profiles import Profile
from usam.registry import source_folder


def with_data(profile: Profile, **changes) -> Profile:
    return profile.model_copy(update={"datasets": {"voc": profile.datasets["voc"].model_copy(update=changes)}})


def test_a_folder_that_was_not_made_here_is_left_alone(tiny):
    real = paths.data() / "smoke" / "VOC2012" / "JPEGImages"
    real.mkdir(parents=True)
    (real / "2007_000001.jpg").write_bytes(b"irreplaceable")
    with pytest.raises(UserError, match=r"was not made by .*left alone"):
        stages.dataset(tiny, "voc")
    assert (real / "2007_000001.jpg").read_bytes() == b"irreplaceable"


def test_a_failed_making_keeps_the_set_that_was_there(tiny):
    before = stages.dataset(tiny, "voc").image_ids
    with pytest.raises(UserError, match="no class 'unicorn'"):
        stages.dataset(with_data(tiny, classes=["car", "unicorn"]), "voc")
    assert stages.dataset(tiny, "voc").image_ids == before


def test_other_settings_or_a_damaged_stamp_make_the_set_again(tiny):
    root = paths.data() / "smoke" / "VOC2012"
    assert len(stages.dataset(tiny, "voc")) == 2
    (root / stages.STAMP).write_text("")
    (root / "JPEGImages" / "leftover").touch()
    assert len(stages.dataset(with_data(tiny, images={"test": 3, "val": 1}), "voc")) == 3
    assert not (root / "JPEGImages" / "leftover").exists()


def test_the_test_split_is_the_default(tiny):
    assert stages.embeddings(tiny, "voc").folder == stages.embeddings(tiny, "voc", "test").folder
    assert stages.embeddings(tiny, "voc", "val").folder != stages.embeddings(tiny, "voc").folder


def test_damaged_heads_are_trained_again_to_the_same(tiny, monkeypatch):
    stages.heads(tiny, "voc", "web", 0)
    student = next(paths.data().rglob("*-student-*.safetensors"))
    before = load(student.read_bytes())  # load_file would map the file that is damaged here
    for damage in (lambda f: f.write_bytes(b""), lambda f: f.write_bytes(f.read_bytes()[:1000]), Path.unlink):
        damage(student)
        stages.heads(tiny, "voc", "web", 0)
        assert all((load(student.read_bytes())[k] == v).all() for k, v in before.items())
    monkeypatch.setattr(stages, "train", None)  # what is whole is not trained again
    stages.heads(tiny, "voc", "web", 0)


def test_another_distillation_keeps_the_teacher(tiny):
    first = stages.heads(tiny, "voc", "web", 0)
    other = tiny.model_copy(update={"distillation": tiny.distillation.model_copy(update={"lambda_uncertainty": 3.0})})
    second = stages.heads(other, "voc", "web", 0)
    kinds = [p.name.split("-")[3] for p in (paths.data() / "smoke" / "heads").glob("*.safetensors")]
    assert sorted(kinds) == ["student", "student", "teacher"]
    for one, same in (("teacher", True), ("student", False)):
        states = (getattr(both, one).state_dict() for both in (first, second))
        assert all((a == b).all() for a, b in zip(*(s.values() for s in states), strict=True)) == same


def test_heads_belong_to_the_embeddings_they_were_trained_on(tiny, monkeypatch):
    def folders() -> set[Path]:
        return set(paths.data().rglob("*-student-*.safetensors"))

    stages.heads(tiny, "voc", "web", 0)
    first = folders()
    fewer = tiny.model_copy(update={"sam": tiny.sam.model_copy(update={"points_per_side": 2})})
    stages.heads(fewer, "voc", "web", 0)
    assert len(folders()) == len(first) + 1


def test_pictures_of_a_real_set_that_were_replaced_are_embedded_again(tiny):
    stages.dataset(tiny, "voc")
    root = paths.data() / "smoke" / "VOC2012"
    (root / stages.STAMP).unlink()
    shutil.move(root, paths.data() / "real")
    real = with_data(tiny, maker=None, root="real")
    before = stages.embeddings(real, "voc").folder
    assert stages.embeddings(real, "voc").folder == before
    one, other = sorted((paths.data() / "real" / "JPEGImages").glob("test*.jpg"))
    shutil.copyfile(one, other)
    assert stages.embeddings(real, "voc").folder != before


def test_an_in_domain_head_learns_from_the_training_split_and_is_stored(tiny, monkeypatch):
    profile = with_data(tiny, images={"test": 2, "val": 1, "train": 3})
    seen = []

    def spied(bags, *arguments, **options):
        seen.append(bags)
        return train(bags, *arguments, **options)

    monkeypatch.setattr(stages, "train", spied)
    (made,) = stages.in_domain_heads(profile, "voc", [0])
    data, (bags,) = stages.dataset(profile, "voc", "train"), seen
    alone = stages.extractor(profile)(data.image(1))
    # not to the last bit: some CPUs round a product differently on one core and on all
    np.testing.assert_allclose(bags.tokens(np.array([1]))[0], alone.tokens.reshape(100, 1024), atol=0.01)
    masks = to_image_size(rle_to_masks(alone.masks), alone.extent, alone.image_size)
    objects = data[1].instances
    iou = mask_iou(masks, rle_to_masks([one.mask for one in objects]))
    expected = [objects[row.argmax()].label if row.max() >= 0.5 else -1 for row in iou]
    assert bags.mask_labels[1].tolist() == expected and {*expected} > {-1}
    assert bags.labels[1].nonzero()[:, 0].tolist() == sorted({*expected} - {-1})
    monkeypatch.setattr(stages, "train", None)  # what is stored is not trained again
    (again,) = stages.in_domain_heads(profile, "voc", [0])
    assert torch.equal(again.model.layers[0].weight, made.model.layers[0].weight)


def test_an_in_domain_head_learns_from_no_more_scenes_than_a_source_has_images(tiny, monkeypatch):
    profile = with_data(tiny, images={"test": 2, "val": 1, "train": 8})
    most = 2 * max(source.per_class for source in profile.sources.values())
    assert most < 8
    stages.in_domain_heads(profile, "voc", [0])
    monkeypatch.setattr(stages, "extractor", None)  # nothing is extracted from here on
    assert len(stages.embeddings(profile, "voc", "train", most)) == most
    monkeypatch.undo()
    assert len(stages.embeddings(profile, "voc", "train")) == 8  # apart from the few
    assert len(stages.embeddings(profile, "voc", "train", most)) == most


def test_a_training_split_without_objects_is_named(tiny, monkeypatch):
    profile = with_data(tiny, images={"test": 2, "val": 1, "train": 3})
    monkeypatch.setattr(stages, "covered_objects", lambda example, embeddings: (np.full(100, -1), np.zeros(100)))
    with pytest.raises(UserError, match="voc_train: no mask fits an object of the classes"):
        stages.in_domain_heads(profile, "voc", [0])


def test_other_labels_make_another_in_domain_head(tiny):
    profile = with_data(tiny, images={"test": 2, "val": 1, "train": 3})
    stages.dataset(profile, "voc", "train")
    root = paths.data() / "smoke" / "VOC2012"
    (root / stages.STAMP).unlink()
    shutil.move(root, paths.data() / "real")
    real = with_data(profile, maker=None, root="real")

    def heads() -> int:
        stages.in_domain_heads(real, "voc", [0])
        return len(list(paths.data().rglob("voc-in-domain-*.safetensors")))

    assert heads() == heads() == 1
    file = min((paths.data() / "real" / "SegmentationClass").glob("train*.png"))
    with Image.open(file) as labels:
        all_cars = [VOC.index("car") + 1 if value == VOC.index("dog") + 1 else value for value in range(256)]
        labels.point(all_cars).save(file)
    assert heads() == 2


def test_the_in_domain_head_is_scored_or_named_as_impossible(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("USAM_RESULTS", str(tmp_path / "results"))
    profile = with_data(tiny, images={"test": 2, "val": 1, "train": 3})
    scoring.score(profile, "voc", "in-domain", 0, "in-domain")
    row = pd.read_csv(paths.results("smoke") / "runs.csv").iloc[0]
    assert (row["source"], row["method"], row["seed"], row["split"]) == ("in-domain", "in-domain", 0, "test")
    with pytest.raises(UserError, match=r"'voc' has no training split: name one in the profile, as its 'train'"):
        scoring.score(with_data(tiny, train=None), "voc", "in-domain", 0, "in-domain")


def test_unknown_maker():
    for name in ("math:none", "nowhere:none", "none"):
        with pytest.raises(UserError, match=f"'{name}' cannot be imported as module:name"):
            source_folder(name)


def test_full_disk_is_one_line(tiny, monkeypatch):
    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    stages.training_images(tiny, "web")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"cannot write .*heads.*: No space left on device; free some disk space"):
        stages.heads(tiny, "voc", "web", 0)
    with pytest.raises(UserError, match="cannot write"), writing(paths.data()):
        full()


def test_a_coarser_grid_and_fewer_images_use_what_is_stored(tiny, monkeypatch):
    whole, test = stages.heads(tiny, "voc", "web", 0), stages.embeddings(tiny, "voc")
    monkeypatch.setattr(stages, "extractor", None)  # nothing is extracted from here on
    coarse = tiny.changed({"grid": 2})
    some, rows = stages.embeddings(coarse, "voc"), [22, 27, 72, 77]  # of 10 x 10, nearest to (2.5, 7.5) each way
    assert (some[0].tokens == test[0].tokens[rows]).all() and (some[1].points == test[1].points[rows]).all()
    assert some[1].masks == [test[1].masks[j] for j in rows] and len(some) == len(test)
    for other in (coarse, tiny.changed({"head.images_per_class": 1})):
        head = stages.heads(other, "voc", "web", 0).student
        assert not torch.equal(head.layers[0].weight, whole.student.layers[0].weight)
    with pytest.raises(UserError, match="11 points a side are more than the 10"):
        stages.embeddings(tiny.changed({"grid": 11}), "voc")
