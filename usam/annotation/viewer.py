"""A picture with its labelled masks, and what decides about them under one's fingers: thresholds and classes."""

import base64
import html
import io
import time
from typing import Any

import cv2
import ipywidgets as widgets
import numpy as np
from PIL import Image

from usam.annotation.annotate import Annotated
from usam.config import InferenceConfig
from usam.data import image_files
from usam.method import inference
from usam.method.inference import LabelledMasks
from usam.method.masks import to_image_size
from usam.report import figures

VIEW = (720, 540)  # pixels, width and height that a picture gets at most
WIDE = "display:block; width:100%; height:auto"  # of the frame around picture and masks, however wide it is
STYLE = """<style>
.usam text { pointer-events: none; font: 13px sans-serif; fill: white; stroke: black; stroke-width: 3px;
    paint-order: stroke; text-anchor: middle; dominant-baseline: central; }
.usam .said { visibility: hidden; font-size: 16px; font-weight: bold; }
.usam path:hover { fill-opacity: 0.75; stroke-width: 3px; }
%s</style>"""


class Viewer(widgets.VBox):
    """Shows the pictures of an annotated folder, the most doubtful first; a mask under the mouse says class and score.

    SAM's embeddings are kept, so that a moved slider asks SAM nothing. What is chosen here changes no file: give the
    values to `annotate`.

    Args:
        annotated: what `annotate` returned.

    Attributes:
        score, nms: sliders for the thresholds.
        switches: a checkbox for each class.
        number: of the picture, from 1 on.
        back, forward: buttons.
        drawing: the masks, as SVG over the picture.
        said: number of masks, and the milliseconds that they took.
    """

    def __init__(self, annotated: Annotated) -> None:
        self._annotated, self._config = annotated, annotated.profile.inference
        self._colors = figures.class_colors(len(annotated.names))
        self._picture, self.drawing, self.said = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.score = _slider("score at least", self._config.score_threshold, 0.0)
        self.nms = _slider("overlap below", self._config.nms_iou, 0.01)
        self.switches = [widgets.Checkbox(True, description=name, indent=False) for name in annotated.names]
        objects = annotated.pictures["objects"].to_numpy()
        first = int((objects > 0).argmax()) + 1 if len(objects) else 1  # that has something to look at
        self.number = widgets.BoundedIntText(first, min=1, max=max(len(objects), 1), description="picture")
        self.back, self.forward = widgets.Button(description="previous"), widgets.Button(description="next")
        for layer in (self._picture, self.drawing):
            layer.layout.grid_area = "1 / 1"  # one over the other
        self._frame = widgets.GridBox([self._picture, self.drawing])
        super().__init__([
            widgets.HBox([self.back, self.number, self.forward]),
            widgets.HBox([self.score, self.nms]),
            widgets.HBox([self._switch(k) for k in range(len(self.switches))], layout={"flex_flow": "row wrap"}),
            self._frame,
            self.said,
        ])  # fmt: skip
        self.back.on_click(lambda _: self._step(-1))
        self.forward.on_click(lambda _: self._step(1))
        self.number.observe(lambda _: self._open(), "value")
        for control in (self.score, self.nms, *self.switches):
            control.observe(lambda _: self._redraw(), "value")
        if len(annotated.pictures):
            self._open()

    def _switch(self, label: int) -> widgets.Widget:
        swatch = f'<div style="width:1em; height:1em; margin:.5em; background:{_hex(self._colors[label])}"></div>'
        return widgets.HBox([widgets.HTML(swatch), self.switches[label]], layout={"width": "12rem"})

    def _step(self, by: int) -> None:
        self.number.value = min(max(self.number.value + by, 1), self.number.max)

    def _open(self) -> None:
        """Another picture."""
        name = self._annotated.pictures["name"][self.number.value - 1]
        self._embeddings = self._annotated.embeddings(name)
        self._probability = inference.probabilities(self._annotated.head, self._embeddings.tokens)
        with Image.open(self._annotated.out / "images" / f"{name}.jpg") as image:
            small = image_files.contained(image.convert("RGB"), *VIEW)
        self._size, self._name = small.size[::-1], name
        small.save(content := io.BytesIO(), "JPEG", quality=90)
        data = base64.b64encode(content.getvalue()).decode()
        self._picture.value = (
            f'<img src="data:image/jpeg;base64,{data}" alt="{html.escape(name)}" width="{small.width}" '
            f'height="{small.height}" style="{WIDE}">'
        )
        self._frame.layout = {"width": f"{small.width}px", "max_width": "100%"}
        self._redraw()

    def found(self) -> LabelledMasks:
        """The masks that are shown, as `inference.choose` gives them."""
        asked = self._config.model_dump() | {"score_threshold": self.score.value, "nms_iou": self.nms.value}
        classes = len(self._annotated.names)
        found = inference.choose(self._probability, self._embeddings, InferenceConfig(**asked), classes)
        on = [label for label, switch in enumerate(self.switches) if switch.value]
        return found.only(np.isin(found.labels, on))

    def _redraw(self) -> None:
        start = time.perf_counter()
        found = self.found()
        masks = to_image_size(found.masks, self._embeddings.extent, self._size)
        seen = masks.any((1, 2))  # on a strip, a mask can be thinner than a pixel of the view
        masks, found = masks[seen], found.only(seen)
        words = [
            (self._annotated.names[label], f"{score:.2f}", _hex(self._colors[label]))
            for label, score in zip(found.labels, found.scores, strict=True)
        ]
        self.drawing.value = svg(masks, words)
        took = 1000 * (time.perf_counter() - start)
        self.said.value = f"{html.escape(self._name)}: {len(masks)} masks, drawn in {took:.0f} ms"

    def _repr_mimebundle_(self, **options: Any) -> dict[str, str]:
        """The widget, and the same picture for those who have no kernel: on the page of a run, in a viewer of files."""
        width = self._frame.layout.width or "auto"
        layers = _layer(self._picture.value) + _layer(self.drawing.value)
        still = f'<div style="display:grid; max-width:{width}">{layers}</div>'
        return super()._repr_mimebundle_(**options) | {"text/html": still}


def _slider(description: str, value: float, low: float) -> widgets.FloatSlider:
    look = {"style": {"description_width": "7rem"}, "layout": widgets.Layout(width="24rem")}
    return widgets.FloatSlider(value, min=low, max=1.0, step=0.01, description=description, **look)


def _layer(content: str) -> str:
    return f'<div style="grid-area:1 / 1">{content}</div>'


def svg(masks: np.ndarray, words: list[tuple[str, str, str]]) -> str:
    """Masks (n, H, W) bool with the name, score and colour of each; the first lie on top."""
    height, width = masks.shape[1:]
    shapes, names, said, rules = [], [], [], []
    for k in reversed(range(len(masks))):
        name, score, color = words[k]
        x, y = _middle(masks[k])
        shapes.append(
            f'<path class="m{k}" d="{_path(masks[k])}" fill="{color}" fill-opacity="0.45" fill-rule="evenodd" '
            f'stroke="white" stroke-width="1.5"><title>{html.escape(name)} {score}</title></path>'
        )
        names.append(f'<text x="{x}" y="{y}" class="n{k}">{html.escape(name)}</text>')
        said.append(f'<text x="{x}" y="{y}" class="said s{k}">{html.escape(name)} {score}</text>')
        rules.append(f".usam .m{k}:hover ~ .s{k} {{ visibility: visible; }}\n")
        rules.append(f".usam .m{k}:hover ~ .n{k} {{ visibility: hidden; }}\n")
    drawn = "".join(shapes + names + said)
    look = STYLE % "".join(rules)
    return f'{look}<svg class="usam" viewBox="0 0 {width} {height}" style="{WIDE}">{drawn}</svg>'


def _middle(mask: np.ndarray) -> tuple[int, int]:
    """As `figures.middle`; of a mask that is not thin, one pixel of sixteen is enough."""
    few = mask[::4, ::4]
    x, y = figures.middle(few if few.any() else mask)
    return (4 * x, 4 * y) if few.any() else (x, y)


def _path(mask: np.ndarray) -> str:
    rings, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return "".join("M" + "L".join(f"{x + 0.5:g},{y + 0.5:g}" for x, y in ring[:, 0].tolist()) + "Z" for ring in rings)


def _hex(color: np.ndarray) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in color)
