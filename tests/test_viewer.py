"""The interactive view, moved without a browser."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from usam.annotation import viewer
from usam.annotation.annotate import Annotated, annotate
from usam.annotation.viewer import Viewer
from usam.method import inference, sam


@pytest.fixture
def annotated(tiny, tmp_path) -> Annotated:
    rng = np.random.default_rng(0)
    for name, size in (("a", (40, 30)), ("b", (20, 50)), ("c", (300, 4))):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), np.uint8)).save(tmp_path / "in" / f"{name}.png")
    return annotate(tmp_path / "in", ["car", "dog"], profile=tiny, score_threshold=0.5)


def shapes(view: Viewer) -> list[ElementTree.Element]:
    """The masks of the drawing, which must be well-formed."""
    return ElementTree.fromstring(view.drawing.value.partition("</style>")[2]).findall("path")


def test_sliders_and_switches_decide_what_is_drawn(annotated, monkeypatch):
    view = Viewer(annotated)
    monkeypatch.setattr(sam, "load_sam", lambda *_: pytest.fail("SAM is not needed"))
    everything = len(shapes(view))
    assert everything > 1
    embeddings = annotated.embeddings(annotated.images["name"][0])
    probability = inference.probabilities(annotated.head, embeddings.tokens)
    for score, nms in ((0.0, 1.0), (0.5, 0.9), (0.6, 0.5), (1.0, 0.5)):  # up to all of the hundred masks
        view.score.value, view.nms.value = score, nms
        config = annotated.profile.inference.model_copy(update={"score_threshold": score, "nms_iou": nms})
        assert len(shapes(view)) == len(inference.choose(probability, embeddings, config).labels)
    view.score.value, view.nms.value = 0.5, 0.5
    counts = []
    for label in (0, 1):
        view.switches[label].value = False
        assert label not in view.found().labels
        counts.append(len(shapes(view)))
        view.switches[label].value = True
    assert sum(counts) == everything == len(shapes(view))


def test_next_and_previous_stop_at_the_ends(annotated):
    view, names = Viewer(annotated), annotated.images["name"].tolist()
    assert names[0] in view.status.value
    view.back.click()
    assert view.number.value == 1
    for name in (*names[1:], names[-1]):
        view.forward.click()
        assert view.status.value.startswith(f"{name}: ")
    view.number.value = 2
    assert names[1] in view.status.value


def test_each_mask_says_its_class_and_score(annotated):
    view = Viewer(annotated)
    found = view.found()
    titles = [shape.find("title").text for shape in shapes(view)][::-1]  # the highest score is drawn last, on top
    wanted = [f"{annotated.names[k]} {score:.2f}" for k, score in zip(found.labels, found.scores, strict=True)]
    assert titles == wanted


def test_without_a_kernel_there_is_a_still_image(annotated):
    shown = Viewer(annotated)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in shown
    assert "<svg" in shown["text/html"] and "<img" in shown["text/html"] and "alt=" in shown["text/html"]


def test_names_cannot_break_out_of_the_drawing():
    mask = np.ones((1, 9, 9), bool)
    drawing = viewer.svg(mask, ['</text><script>"&'], [0.9], ["#ff0000"])
    assert "<script>" not in drawing
    ElementTree.fromstring(drawing.partition("</style>")[2])


def test_no_images_no_drawing(tiny, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "text.jpg").write_text("not an image at all")
    assert not Viewer(annotate(tmp_path / "in", ["car", "dog"], profile=tiny)).drawing.value
