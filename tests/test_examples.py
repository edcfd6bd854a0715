"""Which images the figures show: chosen by a rule from the scores, and described by what came of them."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest

from miniature import datasets, world
from miniature.splits import rng_of
from usam.data.class_names import SUPERCLASSES
from usam.data.datasets import Example, Instance
from usam.errors import UserError
from usam.evaluation.diagnostics import found_objects
from usam.evaluation.metrics import Matches, confusion_matrix
from usam.evaluation.scores import Scores
from usam.method.inference import LabelledMasks
from usam.method.masks import masks_to_rle
from usam.pipeline import granularity, stages
from usam.profiles import Profile
from usam.report import examples, figures

IOU = np.array([0.5, np.nan, 0.1, 0.9, 0.3, 0.1])


def boxes(*corners: tuple[int, int, int, int]) -> np.ndarray:
    """(n, 8, 8) bool masks, true in [y0, y1) x [x0, x1)."""
    masks = np.zeros((len(corners), 8, 8), bool)
    for mask, (y0, y1, x0, x1) in zip(masks, corners, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def labelled(masks: np.ndarray, *labels: int) -> LabelledMasks:
    return LabelledMasks(np.arange(len(masks)), np.array(labels, int), np.ones(len(masks), np.float32), masks)


def scored(*images: tuple[np.ndarray, np.ndarray]) -> Scores:
    none = np.zeros(0)
    confusion = np.stack([confusion_matrix(truth, prediction, 2) for truth, prediction in images])
    return Scores(confusion, Matches(none, none, none, none, np.zeros((len(images), 2))))


def test_the_iou_of_an_image_is_the_mean_over_classes_that_occur_or_are_predicted():
    nothing, left, right = np.zeros((2, 4), int), np.array([[1, 1, 0, 0]] * 2), np.array([[0, 0, 2, 2]] * 2)
    half = np.array([[1, 0, 0, 0]] * 2)
    void = np.full((2, 4), 255)
    cases = [
        (left, left, 1.0),
        (left + right, left, 0.5),  # one class right, the other missed
        (left, left + right, 0.5),  # one class right, another one invented
        (left, half, 0.5),
        (left, nothing, 0.0),
        (nothing, left, 0.0),
        (nothing, nothing, np.nan),  # nothing to find, nothing found
        (void, left, np.nan),  # no pixel counts
    ]
    np.testing.assert_allclose(scored(*(case[:2] for case in cases)).image_iou, [case[2] for case in cases])


def test_examples_are_images_at_quantiles():
    chosen = {name: examples.choose(IOU, name) for name in ("best", "typical", "worst")}
    assert chosen == {"best": 3, "typical": 4, "worst": 2}
    assert examples.choose(IOU, 1) == 1  # a number is taken as it is
    assert examples.at_quantiles(IOU, (0, 0.1, 0.25, 1)) == [2, 5, 3]


@pytest.mark.parametrize("wrong", ["median", 6, -1, None])
def test_examples_that_do_not_exist(wrong):
    with pytest.raises(UserError, match=r"example is .*: choose 'best', 'typical', 'worst' or a number from 0 to 5"):
        examples.choose(IOU, wrong)


def test_without_any_object_there_is_no_example():
    with pytest.raises(UserError, match="no example to show"):
        examples.choose(np.full(3, np.nan), "typical")


def test_a_spread_goes_from_best_to_worst_with_each_image_once():
    assert examples.spread(np.arange(5) / 4, 5) == {
        "best": 4, "quantile 0.75": 3, "typical": 2, "quantile 0.25": 1, "worst": 0,
    }  # fmt: skip
    assert list(examples.spread(IOU, 20).values()) == [3, 0, 4, 5, 2]


def test_found_objects_have_the_right_class_and_half_of_the_overlap():
    first, second, third = boxes((0, 4, 0, 4), (4, 8, 4, 8), (0, 4, 6, 8))
    objects = [Instance(0, rle) for rle in masks_to_rle(np.stack([first, second, third]))]
    objects.append(Instance(1, masks_to_rle(boxes((6, 8, 0, 2)))[0], crowd=True))
    semantic = np.where(first | second | third, 1, 0).astype(np.uint8)
    example = Example("a", np.zeros((8, 8, 3), np.uint8), semantic, objects)
    found = labelled(boxes((0, 4, 0, 3), (4, 8, 4, 8), (0, 4, 4, 8)), 0, 1, 0)  # IoU 0.75; another class; IoU 0.5
    assert found_objects(example, found).tolist() == [True, False, True]
    words = examples.outcome(example, found, ["cat", "dog"])
    assert words == "2 of 3 objects labelled correctly (missed: cat), 33% of the background painted"
    nothing = Example("b", example.image, np.zeros((8, 8), np.uint8), [])
    assert examples.outcome(nothing, labelled(boxes()), ["cat"]) == (
        "0 of 0 objects labelled correctly, 0% of the background painted"
    )


def test_only_classes_that_are_present_have_colours_and_all_of_them_differ():
    truth, ours = np.array([[0, 7, 255]]), np.array([[20, 7, 0]])
    assert list(figures.present_colors(truth, ours)) == [7, 20]
    many = np.stack(list(figures.present_colors(np.arange(19)).values()))
    assert many.shape == (18, 3) and len(np.unique(many.round(3), axis=0)) == 18


def test_names_on_an_image_do_not_hide_each_other():
    figure, axes = plt.subplots(figsize=(3, 3))
    figures.show(axes, np.zeros((100, 100, 3), np.uint8))
    figures.write_on(axes, (100, 100), [(50, 50), (52, 51), (99, 50), (50, 99)], ["aeroplane", "chair", "car", "dog"])
    figure.canvas.draw()
    places = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for n, one in enumerate(places) for other in places[:n])
    frame = axes.get_window_extent()
    assert all(frame.x0 <= place.x0 and place.x1 <= frame.x1 and place.y0 >= frame.y0 for place in places)
    plt.close(figure)


def test_the_figures_show_the_profiles_own_source_unless_another_one_is_named(tiny):
    assert tiny.source_of_figures() == "synthetic" and tiny.source_of_figures("web") == "web"  # the first by default
    pictured = tiny.model_copy(update={"pictured": "web"})
    assert pictured.source_of_figures() == "web" and pictured.source_of_figures("synthetic") == "synthetic"
    assert pictured.decisive() == tiny.decisive()  # no score depends on it
    with pytest.raises(UserError, match="profile 'smoke' has no source 'photos': it has synthetic, web"):
        tiny.source_of_figures("photos")
    content = tiny.model_dump(mode="json") | {"pictured": "photos"}
    with pytest.raises(ValueError, match="'photos' is no source of this profile: choose one of synthetic, web"):
        Profile.model_validate_json(json.dumps(content))


def test_superclasses_take_the_images_of_the_named_source_and_generated_ones_by_default(tiny):
    for source, changed in (
        ("synthetic", granularity.regrouped(tiny, ["car", "dog"])),
        ("web", granularity.regrouped(tiny, ["car", "dog"], "web")),
    ):
        assert list(changed.sources) == [source] and changed.source_of_figures() == source
        assert changed.datasets["voc"].groups == {"animals": ["dog"], "transportation": ["car"]}
        made = stages.training_images(changed, source)
        assert set(made.table["class"]) == {"animals", "transportation"}


def test_the_miniature_web_shows_the_members_of_a_superclass_by_turns():
    plain = world.web("tvmonitor", rng_of("train", "web", "tv", 3, 0)).image
    np.testing.assert_array_equal(datasets.web("tv", 3), plain)
    animals = SUPERCLASSES["animals"]
    for k, member in enumerate([*animals, animals[1]]):  # the second round begins with the second
        image = datasets.web("animals", k)
        np.testing.assert_array_equal(image, world.web(member, rng_of("train", "web", "animals", k, 0)).image)
        assert not np.array_equal(image, datasets.web(member, k))


def test_what_the_largest_class_of_an_image_was_taken_for():
    counts = np.zeros((3, 3), int)
    counts[0, 0], counts[1, 1], counts[2] = 900, 50, (71, 20, 9)
    assert examples.taken_for(counts, ["cat", "dog"]) == "dog is 71% background, 20% cat, 9% dog"
    counts[2, 0] = 571  # 20 and 9 of 600 are below 5%
    assert examples.taken_for(counts, ["cat", "dog"]) == "dog is 95% background"
    assert examples.taken_for(np.diag([9, 0, 0]), ["cat", "dog"]) == "no object is there"
