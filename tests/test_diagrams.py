"""The paper's Figures 1 and 2 show the numbers of the run, and no text overlaps; saved figures keep their colours."""

import itertools
import math
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox
from PIL import Image

from usam import paths, profiles
from usam.method.masks import coarser, point_grid
from usam.pipeline import stages
from usam.profiles import Profile
from usam.report import diagrams, figures


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def labels(figure: Figure) -> list[Text]:
    """All visible texts except the class names that `figures.annotate` writes on images."""
    on_images = [text for axes in figure.axes if axes.images for text in axes.texts]
    visible = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    return [text for text in visible if text not in on_images]


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in labels(figure))


def overlap(one: Bbox, other: Bbox) -> bool:
    """Tell whether two boxes share more than a pixel's edge."""
    return min(one.x1, other.x1) - max(one.x0, other.x0) > 1 and min(one.y1, other.y1) - max(one.y0, other.y0) > 1


def within(inner: Bbox, outer: Bbox) -> bool:
    return outer.x0 <= inner.x0 and inner.x1 <= outer.x1 and outer.y0 <= inner.y0 and inner.y1 <= outer.y1


def arrows(figure: Figure) -> list[np.ndarray]:
    """Points along each arrow, in pixels, (n, 2) each."""
    patches = [note.arrow_patch for note in figure.findobj(Annotation) if note.arrow_patch]
    found = [patch.get_transform().transform_path(patch.get_path()) for patch in patches]
    return [path.interpolated(50).vertices for path in found]


def check_layout(figure: Figure) -> None:
    """Assert that texts overlap neither each other nor images nor arrows, and that they lie inside the figure."""
    figure.canvas.draw()
    places = [(text.get_text(), text.get_window_extent()) for text in labels(figure)]
    images = [axes.get_window_extent() for axes in figure.axes if axes.images]
    for (name, one), (other_name, other) in itertools.combinations(places, 2):
        assert not overlap(one, other), f"{name!r} overlaps {other_name!r}"
    for name, place in places:
        assert within(place, figure.bbox), f"{name!r} leaves the figure"
        assert not [image for image in images if overlap(place, image)], f"{name!r} overlaps an image"
    for points in arrows(figure):
        assert all(within(Bbox([point, point]), figure.bbox) for point in points)
        for name, place in places:
            assert not any(place.contains(*point) for point in points), f"an arrow crosses {name!r}"
        for image in images:
            assert not any(image.padded(-2).contains(*point) for point in points), "an arrow crosses an image"


@pytest.mark.parametrize("source", ["synthetic", "web"])
def test_nothing_overlaps_and_the_numbers_are_those_of_the_run(tiny: Profile, source: str):
    stages.heads(tiny, "voc", source, 0)  # not under the filter: libraries that generate images have their own warnings
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        one = diagrams.problem(tiny, "voc", source, 0, {"the best: IoU 0.50": 1, "the worst: IoU 0.10": 0})
        two = diagrams.architecture(tiny, "voc", source, 0, 1)
        check_layout(one)
        check_layout(two)
    assert len(arrows(one)) == 8 and len(arrows(two)) == 32
    example, text, d, count = diagrams._example(tiny, "voc", source, 0), words(two), tiny.sam.points_per_side**2, 2
    assert example.tokens.shape == (d, 1024) and example.teacher.shape == (d, count)
    for values in (example.tokens, example.teacher, example.student, example.features, example.prompts):
        assert " × ".join(str(n) for n in values.shape) in text
    for width in (1024, *tiny.head.widths, count):
        assert str(width) in text.splitlines() and str(width) in words(one).splitlines()
    assert f"{int(example.bad.sum())} of {d}" in text and f"$k$ = {math.ceil(d / tiny.head.a)} largest" in text
    assert f"{len(stages.training_images(tiny, source).table)} training images" in words(one)
    assert "the best: IoU 0.50" in words(one) and "the worst: IoU 0.10" in words(one)


def test_frames_tell_what_is_frozen_trained_and_a_rule(tiny: Profile):
    figure = diagrams.architecture(tiny, "voc", "web", 0, 0)
    styles = {}
    for axes in figure.axes:
        style = {"-": "solid", "--": "dashed", ":": "dotted"}.get(axes.spines["left"].get_linestyle())
        for text in (axes.get_title(), *(text.get_text() for text in axes.texts)):
            styles |= {word: style for word in ("frozen", "trained", "Eq. (") if word in text}
    assert styles == {"frozen": "solid", "trained": "dashed", "Eq. (": "dotted"}


CHANGES = [
    ("head.a", 4, "$k$ = 10 ", "$k$ = 7 "),  # of 25 points
    ("head.widths", [96, 64, 48], "\n256\n", "\n48\n"),
    ("distillation.lambda_uncertainty", 0.3, "$λ_2$ = 0.15", "$λ_2$ = 0.3"),
    ("distillation.lambda_mil", 2.0, "$λ_1$ = 1,", "$λ_1$ = 2,"),
    ("distillation.entropy_threshold", 0.25, "0.5 ln", "0.25 ln"),
    ("inference.score_threshold", 0.9, "score ≥ 0.7", "score ≥ 0.9"),
    ("inference.nms_iou", 0.6, "NMS at IoU 0.5", "NMS at IoU 0.6"),
    ("inference.nms_per_class", True, "among all masks", "among masks of a class"),
    ("grid", 5, "$d$ = 100", "$d$ = 25"),
]


def test_figure_2_follows_the_profile(tiny: Profile):
    other = tiny
    for key, value, _, _ in CHANGES:
        other = other.changed({key: value})
    one, two = (diagrams.architecture(p, "voc", "web", 0, 0) for p in (tiny, other))
    for _, _, before, after in CHANGES:
        assert before in words(one) and after not in words(one)
        assert after in words(two) and before not in words(two)
    check_layout(two)
    example = diagrams._example(other, "voc", "web", 0)
    assert len(example.found.points) == len(example.prompts) == len(example.tokens) == 25
    assert (example.found.points == point_grid(example.image.shape[:2], 10)[coarser(10, 5)]).all()


def test_lists_of_names_fit_their_box():
    names = [f"traffic lamp {n}" for n in range(80)]
    text = diagrams._listed(names, 22, 14)
    assert len(text.splitlines()) == 14 and max(map(len, text.splitlines())) <= 22 and text.endswith(" …")
    assert diagrams._listed(["car", "dog", "sofa"], 20, 7) == "car, dog, sofa"
    assert diagrams._listed(["a long class name", "dog"], 10, 7).splitlines() == ["a long", "class", "name, dog"]
    assert diagrams._cut("x" * 40, 14) == "x" * 13 + "…" and diagrams._cut("dog", 14) == "dog"


@pytest.fixture
def smoke(tmp_path, monkeypatch) -> Profile:
    monkeypatch.setenv("USAM_RESULTS", str(tmp_path))
    return profiles.load("smoke")


@pytest.mark.parametrize("styled", [False, True])
def test_saved_figures_have_true_colours_and_truetype_text(smoke: Profile, styled: bool):
    with plt.rc_context():
        if styled:
            figures.style()
        figure, axes = plt.subplots()
        axes.grid(False)
        axes.imshow(np.linspace(0, 1, 512)[None].repeat(100, 0), cmap="viridis", aspect="auto")
        figures.save(figure, smoke, "ramp", "A ramp, θ.", pdf=True)
    folder = paths.results("smoke") / "figures"
    with Image.open(folder / "ramp.png") as image:
        assert image.info["Description"].startswith("A ramp, θ. (") and smoke.world in image.info["Description"]
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 256
    viridis = (255 * plt.get_cmap("viridis")(np.arange(256))[:, :3]).round()
    assert all((np.abs(pixels - color).max(1) <= 1).any() for color in viridis)
    pdf = (folder / "ramp.pdf").read_bytes()
    assert b"/TrueType" in pdf or b"/CIDFontType2" in pdf
    assert b"/Type3" not in pdf
