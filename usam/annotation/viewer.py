"""An annotated image in a notebook, with sliders for the thresholds and a switch for each class."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import cv2
import ipywidgets as widgets
import numpy as np
from matplotlib.colors import to_hex
from PIL import Image

from usam.annotation.annotate import Annotated
from usam.data import image_files
from usam.method import inference
from usam.method.inference import LabelledMasks
from usam.method.masks import to_image_size
from usam.report import figures

VIEW = (720, 540)  # largest width and height of the view, in pixels
SWATCH = '<div style="width:1em; height:1em; margin:.5em; background:{}"></div>'
WIDE = "display:block; width:100%; height:auto"  # image and masks fill their frame
HOVER = "<style>.usam path:hover { fill-opacity: 0.75; stroke-width: 3px; }</style>"
SHAPE = 'fill-opacity="0.45" fill-rule="evenodd" stroke="white" stroke-width="1.5"'
TEXT = (
    'style="pointer-events:none; font:13px sans-serif; fill:white; stroke:black; stroke-width:3px; '
    'paint-order:stroke; text-anchor:middle; dominant-baseline:central"'
)


class Viewer(widgets.VBox):
    """Shows annotated images, highest expected error first; a mask under the mouse shows its class and score.

    SAM's embeddings are kept, so a slider needs no SAM. Nothing here changes a file: pass the values you choose to
    `annotate`.

    Attributes:
        score, nms: sliders for the thresholds.
        switches: a checkbox for each class.
        number: of the image, counted from 1.
        back, forward: buttons.
        drawing: the masks, as SVG over the image.
        status: the image's name and the number of masks.
    """

    def __init__(self, annotated: Annotated) -> None:
        self._annotated, self._config = annotated, annotated.profile.inference
        self._colors = [to_hex(color) for color in figures.class_colors(len(annotated.names))]
        self._image, self.drawing, self.status = widgets.HTML(), widgets.HTML(), widgets.HTML()
        wide = {"max": 1.0, "step": 0.01, "style": {"description_width": "7rem"}, "layout": {"width": "24rem"}}
        threshold, nms_iou = self._config.score_threshold, self._config.nms_iou
        self.score = widgets.FloatSlider(threshold, min=0.0, description="score at least", **wide)
        self.nms = widgets.FloatSlider(nms_iou, min=0.01, description="overlap below", **wide)
        self.switches = [widgets.Checkbox(True, description=name, indent=False) for name in annotated.names]
        objects = annotated.images["objects"].to_numpy()
        first = int((objects > 0).argmax()) + 1 if len(objects) else 1  # an image with masks to look at
        self.number = widgets.BoundedIntText(first, min=1, max=max(len(objects), 1), description="image")
        self.back, self.forward = widgets.Button(description="previous"), widgets.Button(description="next")
        for layer in (self._image, self.drawing):
            layer.layout.grid_area = "1 / 1"  # one on top of the other
        self._frame = widgets.GridBox([self._image, self.drawing])
        switches = [
            widgets.HBox([widgets.HTML(SWATCH.format(color)), switch], layout={"width": "12rem"})
            for color, switch in zip(self._colors, self.switches, strict=True)
        ]
        super().__init__([
            widgets.HBox([self.back, self.number, self.forward]),
            widgets.HBox([self.score, self.nms]),
            widgets.HBox(switches, layout={"flex_flow": "row wrap"}),
            self._frame,
            self.status,
        ])  # fmt: skip
        self.back.on_click(lambda _: self._step(-1))
        self.forward.on_click(lambda _: self._step(1))
        self.number.observe(lambda _: self._open(), "value")
        for control in (self.score, self.nms, *self.switches):
            control.observe(lambda _: self._redraw(), "value")
        if len(objects):
            self._open()

    def _step(self, by: int) -> None:
        self.number.value += by  # the field stops at its ends

    def _open(self) -> None:
        """Show the image of this number."""
        self._name = self._annotated.images["name"][self.number.value - 1]
        self._embeddings = self._annotated.embeddings(self._name)
        self._probability = inference.probabilities(self._annotated.head, self._embeddings.tokens)
        pixels = image_files.read(self._annotated.out / "images" / f"{self._name}.jpg")
        small = image_files.contained(Image.fromarray(pixels), *VIEW)
        self._size = small.size[::-1]
        small.save(content := io.BytesIO(), "JPEG", quality=90)
        data = base64.b64encode(content.getvalue()).decode()
        self._image.value = (
            f'<img src="data:image/jpeg;base64,{data}" alt="{html.escape(self._name)}" width="{small.width}" '
            f'height="{small.height}" style="{WIDE}">'
        )
        self._frame.layout = {"width": f"{small.width}px", "max_width": "100%"}
        self._redraw()

    def found(self) -> LabelledMasks:
        """The masks that are shown, as `inference.choose` gives them."""
        config = self._config.model_copy(update={"score_threshold": self.score.value, "nms_iou": self.nms.value})
        found = inference.choose(self._probability, self._embeddings, config, len(self.switches))
        return found.only(np.isin(found.labels, [k for k, switch in enumerate(self.switches) if switch.value]))

    def _redraw(self) -> None:
        found = self.found()
        masks = to_image_size(found.masks, self._embeddings.extent, self._size)
        visible = masks.any((1, 2))  # a mask can be thinner than a pixel of the view
        masks, found = masks[visible], found.only(visible)
        names = [self._annotated.names[label] for label in found.labels]
        colors = [self._colors[label] for label in found.labels]
        self.drawing.value = svg(masks, names, found.scores, colors)
        self.status.value = f"{html.escape(self._name)}: {len(masks)} masks"

    def _repr_mimebundle_(self, **options: Any) -> dict[str, str]:
        """The widget, and a still image for pages and viewers without a kernel."""
        width = self._frame.layout.width or "auto"
        layers = [f'<div style="grid-area:1 / 1">{one.value}</div>' for one in (self._image, self.drawing)]
        still = f'<div style="display:grid; max-width:{width}">{"".join(layers)}</div>'
        return super()._repr_mimebundle_(**options) | {"text/html": still}


def svg(masks: np.ndarray, names: Sequence[str], scores: Sequence[float], colors: Sequence[str]) -> str:
    """Masks (n, H, W) bool, each with its name, score and CSS colour; the first lie on top."""
    height, width = masks.shape[1:]
    shapes, texts = [], []
    for mask, name, score, color in reversed(list(zip(masks, map(html.escape, names), scores, colors, strict=True))):
        x, y = figures.middle(mask)
        shapes.append(f'<path d="{_path(mask)}" fill="{color}" {SHAPE}><title>{name} {score:.2f}</title></path>')
        texts.append(f'<text x="{x}" y="{y}" {TEXT}>{name}</text>')
    drawn = "".join(shapes + texts)
    return f'{HOVER}<svg class="usam" viewBox="0 0 {width} {height}" style="{WIDE}">{drawn}</svg>'


def _path(mask: np.ndarray) -> str:
    rings, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return "".join("M" + "L".join(f"{x + 0.5:g},{y + 0.5:g}" for x, y in ring[:, 0].tolist()) + "Z" for ring in rings)
