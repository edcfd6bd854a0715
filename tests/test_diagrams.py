"""The paper's Figures 1 and 2 by code: what is written in them is the run's, and nothing lies upon anything else."""

import itertools
import math
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.transforms import Bbox

from usam.config import Profile
from usam.method.masks import coarser, point_grid
from usam.pipeline import stages
from usam.report import boxes, diagrams


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def labels(figure: Figure) -> list:
    """All texts but those that `figures.annotate` puts on a picture."""
    beside = [text for axes in figure.axes if not axes.images for text in axes.texts]
    legends = [text for legend in figure.legends for text in legend.get_texts()]
    return [text for text in (*figure.texts, *beside, *legends) if text.get_text()]


def said(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in labels(figure))


def overlap(one: Bbox, other: Bbox) -> bool:
    """Do two boxes share more than a pixel's edge?"""
    return min(one.x1, other.x1) - max(one.x0, other.x0) > 1 and min(one.y1, other.y1) - max(one.y0, other.y0) > 1


def within(inner: Bbox, outer: Bbox) -> bool:
    return outer.x0 <= inner.x0 and inner.x1 <= outer.x1 and outer.y0 <= inner.y0 and inner.y1 <= outer.y1


def lines(figure: Figure) -> list[Bbox]:
    """The straight pieces of all arrows and of their heads, two pixels thick."""
    arrows = [artist for artist in figure.artists if isinstance(artist, FancyArrowPatch)]
    paths = [arrow.get_transform().transform_path(arrow.get_path()) for arrow in arrows]
    pieces = [piece for path in paths for piece in path.to_polygons(closed_only=False)]
    return [Bbox([np.minimum(*e), np.maximum(*e)]).padded(1) for p in pieces for e in itertools.pairwise(p)]


def check_layout(figure: Figure) -> None:
    figure.canvas.draw()
    places = [(text.get_text(), text.get_window_extent()) for text in labels(figure)]
    frames = [axes.get_window_extent() for axes in figure.axes if axes.axison]
    pictures = [axes.get_window_extent() for axes in figure.axes if axes.images]
    for (name, one), (other_name, other) in itertools.combinations(places, 2):
        assert not overlap(one, other), f"{name!r} lies upon {other_name!r}"
    for name, place in places:
        assert within(place, figure.bbox), f"{name!r} leaves the figure"
        assert not [p for p in pictures if overlap(place, p)], f"{name!r} lies upon a picture"
        assert all(within(place, f) for f in frames if overlap(place, f)), f"{name!r} crosses a frame"
    for line in lines(figure):
        assert within(line, figure.bbox)
        assert not [name for name, place in places if overlap(line, place)], "an arrow crosses a text"
        assert not [f for f in frames if overlap(line, f)], "an arrow crosses a picture or a box"
    assert min(text.get_fontsize() for text in labels(figure)) >= 7


@pytest.mark.parametrize("source", ["synthetic", "web"])
def test_nothing_overlaps_and_what_is_written_is_of_this_run(tiny: Profile, source: str):
    stages.heads(tiny, "voc", source, 0)  # not under the filter: libraries that draw images have warnings of their own
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        one, two = (draw(tiny, "voc", source, 0) for draw in (diagrams.problem, diagrams.architecture))
        check_layout(one)
        check_layout(two)
    assert len(lines(one)) > 6 and len(lines(two)) > 24
    bag, words, d, count = diagrams._bag(tiny, "voc", source, 0), said(two), tiny.sam.points_per_side**2, 2
    assert bag.tokens.shape == (d, 1024) and bag.teacher.shape == (d, count)
    for values in (bag.tokens, bag.teacher, bag.student, bag.features, bag.prompts):
        assert "\n" + " × ".join(str(n) for n in values.shape) in words
    for width in (1024, *tiny.head.widths, count):
        assert str(width) in words.splitlines() and str(width) in said(one).splitlines()
    assert f"{int(bag.bad.sum())} of {d}" in words
    made = stages.training_images(tiny, source).table
    assert f"{len(made)} training images" in said(one)
    top_k = next(a for a in two.axes if a.images and np.ma.is_masked(a.images[0].get_array())).images[0].get_array()
    k = math.ceil(d / tiny.head.a)
    np.testing.assert_allclose(np.sort(top_k[:, 1].compressed()), np.sort(bag.teacher[:, 1])[-k:])


CHANGES = [
    ("head.a", 4, "$k$ = 10\n", "$k$ = 7\n"),  # of 25 points
    ("head.widths", [96, 64, 48], "\n256\n", "\n48\n"),
    ("distillation.lambda_uncertainty", 0.3, "$λ_2$ = 0.15", "$λ_2$ = 0.3"),
    ("distillation.lambda_mil", 2.0, "$λ_1$ = 1,", "$λ_1$ = 2,"),
    ("distillation.entropy_threshold", 0.25, "0.5 ln", "0.25 ln"),
    ("inference.score_threshold", 0.9, "score ≥ 0.7", "score ≥ 0.9"),
    ("inference.nms_iou", 0.6, "NMS at IoU 0.5", "NMS at IoU 0.6"),
    ("inference.nms_per_class", True, "among all masks", "among masks of a class"),
    ("grid", 5, "$d$ = 100", "$d$ = 25"),
]


def test_a_change_of_the_profile_is_seen(tiny: Profile):
    other = tiny
    for key, value, _, _ in CHANGES:
        other = other.changed(key, value)
    one, two = (diagrams.architecture(p, "voc", "web", 0) for p in (tiny, other))
    for _, _, before, after in CHANGES:
        assert before in said(one) and after not in said(one)
        assert after in said(two) and before not in said(two)
    check_layout(two)
    bag = diagrams._bag(other, "voc", "web", 0)
    assert len(bag.points) == len(bag.prompts) == len(bag.tokens) == 25
    assert (bag.points == point_grid(bag.image.shape[:2], 10)[coarser(10, 5)]).all()


def test_test_images_have_two_classes_where_there_are_such(tiny: Profile):
    assert sorted(diagrams._test_images(stages.dataset(tiny, "voc"), 2)) == [0, 1]  # all that there are, each once


@pytest.mark.parametrize(
    ("width", "rows", "area", "size"), [(22, 14, (1, 1, 1.75, 3.1), 9), (25, 7, (1, 1, 1.5, 1.25), 8)]
)
def test_eighty_names_are_cut_and_stay_in_their_box(width: int, rows: int, area: boxes.Area, size: float):
    names = [f"traffic lamp {n}" for n in range(80)]
    text = boxes.listed(names, width, rows)
    assert len(text.splitlines()) <= rows and max(map(len, text.splitlines())) <= width
    *shown, rest = text.replace("\n", " ").replace("\N{NO-BREAK SPACE}", " ").split(", ")
    assert shown == names[: len(shown)]
    assert rest == f"... and {80 - len(shown)} more"
    figure = plt.figure(figsize=(4, 5))
    boxes.box(figure, area, text, boxes.PLAIN, size=size)
    check_layout(figure)


def test_few_names_are_all_there_and_a_long_one_is_cut():
    assert boxes.listed(["car", "dog", "sofa"], 25, 7) == "car, dog, sofa"
    assert boxes.listed(["x" * 40, "dog"], 10, 7) == "x" * 8 + "…,\ndog"


@pytest.mark.parametrize(("high", "wide", "drawn"), [(100, 100, 1.0), (300, 100, 0.75), (100, 300, 1.5)])
def test_a_picture_has_the_width_of_its_shape_within_limits(high: int, wide: int, drawn: float):
    assert boxes.wide(np.zeros((high, wide, 3), np.uint8), 1.0, 1.5) == drawn
