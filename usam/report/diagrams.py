"""The paper's Figures 1 and 2, drawn from a run's own images, tensors and settings."""

import itertools
import math
import textwrap
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch
from torch import nn

from usam import machine
from usam.data import image_files
from usam.evaluation.scores import by_head
from usam.method import inference, losses
from usam.method.masks import coarser
from usam.pipeline import stages
from usam.profiles import Profile
from usam.registry import IMAGE_SOURCES
from usam.report import figures

FROZEN = {"color": figures.BLUE, "linestyle": "-", "linewidth": 1.2}
TRAINED = {"color": figures.ORANGE, "linestyle": "--", "linewidth": 2.0}
RULE = {"color": figures.GREEN, "linestyle": ":", "linewidth": 1.5}
PLAIN = {"color": "0.35", "linestyle": "-", "linewidth": 0.8}
KINDS = {"frozen": FROZEN, "trained here": TRAINED, "a fixed rule": RULE}
ARROW = {"arrowstyle": "-|>", "mutation_scale": 9}
HEADING = {"x": 0.01, "ha": "left", "fontsize": 9.5, "fontweight": "bold"}
STYLE = {"font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 8, "axes.titlepad": 4}
STYLE |= {"axes.grid": False, "image.interpolation": "auto", "image.cmap": "cividis"}  # "auto" averages pixels
LAYOUT = {"use": True, "w_pad": 0.11, "h_pad": 0.09, "wspace": 0, "hspace": 0}  # pads in inches
STYLE |= {f"figure.constrained_layout.{key}": value for key, value in LAYOUT.items()}


@plt.rc_context(STYLE)
def problem(profile: Profile, dataset_name: str, source: str, seed: int, shown: Mapping[str, int]) -> Figure:
    """Draw Figure 1: class names, training images made from them, and test images with the masks that U-SAM labels.

    `shown` are places of test images of `dataset_name`, each under the words to be written below its masks. The student
    was trained on images of `source` with `seed`.
    """
    names, data = stages.class_names(profile, dataset_name), stages.dataset(profile, dataset_name)
    student, store = stages.heads(profile, dataset_name, source, seed).student, stages.embeddings(profile, dataset_name)
    annotate, figure = by_head(student, profile.inference), plt.figure(figsize=(13, 4))
    lanes = [["names", "made", f"image {i}", f"masks {i}", "head", f"labelled {i}"] for i in range(len(shown))]
    part = figure.subplot_mosaic(lanes, width_ratios=(1.5, 3.1, 1.7, 1.7, 1.3, 1.7))
    _box(part["names"], _listed(names, 20, 15), PLAIN, f"the user's input:\n$C$ = {len(names)} class names")
    _training_sheet(part["made"], profile, names, source)
    _head(part["head"], student, TRAINED, "head $θ^s$\n(trained)")
    for i, (words, chosen) in enumerate(shown.items()):
        image, found = data.image(chosen), store[chosen]
        titles = ("",) * 3 if i else ("the user's images", "SAM's masks\n(frozen)", "masks with class names")
        _image(part[f"image {i}"], image, titles[0])
        _image(part[f"masks {i}"], figures.sam_masks(image, found), titles[1], FROZEN)
        figures.annotate(part[f"labelled {i}"], image, annotate(data[chosen], found).semantic_map(), names)
        _decorate(part[f"labelled {i}"], titles[2])
        part[f"labelled {i}"].set_xlabel(words)
        _arrows(part, f"image {i}", f"masks {i}", "head", f"labelled {i}")
    _arrows(part, "names", "made")
    _training_arrow(part["made"], part["head"], 0.03)
    return figure


@plt.rc_context(STYLE)
def architecture(profile: Profile, dataset_name: str, source: str, seed: int, shown: int) -> Figure:
    """Draw Figure 2: training by Eqs. (1) and (2), distillation by Eq. (3), and inference, with the tensors of a run.

    The training image is the first of `source` whose class is one of `dataset_name`; `shown` is the place of the test
    image. Row 1 shows the teacher after its training. The heads were trained with `seed`.
    """
    example = _example(profile, dataset_name, source, seed)
    figure = plt.figure(figsize=(13, 9.8))
    rows = figure.subfigures(3, 1, height_ratios=(3.6, 3.1, 2.1))
    _training(rows[0], profile, source, example)
    _distillation(rows[1], profile, example)
    _inference(rows[2], profile, dataset_name, example, shown)
    frames = [Patch(fill=False, **style) for style in KINDS.values()]
    figure.legend(frames, KINDS, loc="outside lower left", ncols=3, frameon=False, handlelength=3, handleheight=1.4)
    return figure


def _example(profile: Profile, dataset_name: str, source: str, seed: int) -> SimpleNamespace:
    """Compute what SAM and both heads make of a training image.

    Returns:
        names and label: the C class names, and the image's own; image (H, W, 3) uint8; found: its d masks; features
        (256, h, w) and prompts (d, n, 256): inputs of SAM's mask decoder; tokens (d, 1024); heads; teacher and student:
        their logits (d, C); target: the label (1, C); bad: (d,) bool, the masks B_i.
    """
    names, made = stages.class_names(profile, dataset_name), stages.training_images(profile, source)
    heads, extract = stages.heads(profile, dataset_name, source, seed), stages.extractor(profile)
    row = int(made.table["class"].isin(names).to_numpy().argmax())
    label, image = made.table["class"][row], image_files.read(made.folder / made.table["file"][row])
    inputs: dict[str, torch.Tensor] = {}
    extract.sam.image_encoder.register_forward_hook(lambda _m, _i, out: inputs.update(features=out[0].float().cpu()))
    extract.sam.prompt_encoder.register_forward_hook(lambda _m, _i, out: inputs.update(prompts=out[0].float().cpu()))
    found, used = extract(image), coarser(profile.sam.points_per_side, profile.grid or profile.sam.points_per_side)
    found, inputs["prompts"] = found.at(used), inputs["prompts"][used]
    tokens, target = torch.tensor(found.tokens).flatten(1), torch.tensor([[float(name == label) for name in names]])
    teacher, student = (model(tokens.to(machine.device())).cpu() for model in (heads.teacher, heads.student))
    bad = losses.bad_masks(teacher[None], target, profile.distillation.entropy_threshold * math.log(len(names)))[0]
    return SimpleNamespace(names=names, label=label, image=image, found=found, tokens=tokens, heads=heads, bad=bad,
                           teacher=teacher, student=student, target=target, **inputs)  # fmt: skip


def _training(row: SubFigure, profile: Profile, source: str, x: SimpleNamespace) -> None:
    """Draw row 1: an image through SAM, θ, Eq. (1) and Eq. (2), which trains θ."""
    row.suptitle("1  Training: only the image's label teaches the head", **HEADING)
    above = ["names", "grid", "prompt encoder", "prompts", "mask decoder", "tokens", "head", "logits"]
    below = ["source", "image", "image encoder", "features", "mask decoder", "masks", "loss", "scores"]
    part = row.subplot_mosaic([above, below], width_ratios=(1.5, 1.2, 0.8, 1.1, 0.8, 1.2, 1.5, 1.8))
    config, kind = profile.sources[source], IMAGE_SOURCES.find(profile.sources[source].kind)
    model = kind.model(config.settings)
    text = textwrap.fill(kind.words, 16) + ("\n(frozen)" if model else "") + f"\n\n{config.per_class} images per class"
    _box(part["source"], text, FROZEN if model else PLAIN)
    _box(part["names"], _listed(x.names, 20, 7), PLAIN, f"$C$ = {len(x.names)} class names")
    _image(part["image"], x.image, f"training image $x_i$\n“{_cut(x.label, 14)}”", below=True)
    _image(part["grid"], x.image, f"$d$ = {len(x.found.points)} points")
    part["grid"].scatter(*x.found.points.T, s=5, color="white", edgecolor="black", linewidth=0.4)
    for name in ("prompt encoder", "image encoder", "mask decoder"):
        _box(part[name], "SAM's\n" + name.replace(" ", "\n") + "\n\n(frozen)", FROZEN)
    _heatmap(part["prompts"], x.prompts, "prompts")
    text = "image features (norm)\n" + " × ".join(map(str, x.features.shape))
    _image(part["features"], x.features.norm(dim=0), text, below=True)
    _heatmap(part["tokens"], x.tokens, "mask tokens $m_i$")
    _image(part["masks"], figures.sam_masks(x.image, x.found), f"{len(x.found.masks)} masks,\nno labels", below=True)
    _head(part["head"], x.heads.teacher, TRAINED, "head $θ$\n(trained)")
    _heatmap(part["logits"], x.teacher, "logits $o_i$")
    scores = losses.bag_scores(x.teacher[None], profile.head.a)[0]
    part["scores"].bar(range(len(scores)), scores, color=["black" if name == x.label else "0.7" for name in x.names])
    k = max(1, math.ceil(len(x.teacher) / profile.head.a))
    text = f"Eq. (1): means of the $k$ = {k} largest\nper class; black: “{_cut(x.label, 14)}”"
    _decorate(part["scores"], text, RULE, below=True)
    value = abs(float(losses.mil_loss(x.teacher[None], x.target, profile.head.a)))  # -0.0 is written as 0
    formula = "$\\mathcal{L}_{MIL} = -Σ_j\\ y_i^j\\ \\log\\ p_i^j$\n$p_i$ = softmax($s_i$)"
    _box(part["loss"], f"Eq. (2)\n\n{formula}\n\nhere {value:.2f}", RULE)
    _arrows(part, "names", "source", "image", "image encoder", "features", "mask decoder", "tokens", "head", "logits")
    _arrows(part, "image", "grid", "prompt encoder", "prompts", "mask decoder", "masks")
    _arrows(part, "logits", "scores", "loss")
    _arrows(part, "loss", "head", style=TRAINED)


def _distillation(row: SubFigure, profile: Profile, x: SimpleNamespace) -> None:
    """Draw row 2: the teacher's bad masks, and the student's loss, Eq. (3)."""
    row.suptitle("2  Distillation: the student learns to be uncertain about the teacher's bad masks", **HEADING)
    above = ["tokens", "teacher", "entropy", "rule", "bad", "loss"]
    below = ["tokens", "student", "logits", "logits", "logits", "loss"]
    part = row.subplot_mosaic([above, below], width_ratios=(1.5, 1.7, 1.6, 1.7, 1.6, 2.6))
    config, highest = profile.distillation, math.log(len(x.names))
    _heatmap(part["tokens"], x.tokens, "mask tokens $m_i$")
    _head(part["teacher"], x.heads.teacher, FROZEN, "teacher $θ^t$ (now frozen)")
    _head(part["student"], x.heads.student, TRAINED, "student $θ^s$ (trained)")
    colors = plt.get_cmap("viridis")(losses.entropy(x.teacher).numpy() / highest)[:, :3]
    text = f"its entropy $H$: dark 0,\nbright ln $C$ = {highest:.2f}"
    _image(part["entropy"], figures.sam_masks(x.image, x.found, colors, alpha=0.8), text)
    limit = f"{config.entropy_threshold:g} ln $C$ = {config.entropy_threshold * highest:.2f}"
    _box(part["rule"], f"a mask is bad if\n$H$ > {limit}\nor if its class is not\nin the image", RULE)
    rows = x.bad.nonzero()[:, 0].tolist()
    drawn = figures.sam_masks(x.image, x.found, np.array([figures.PURPLE] * len(rows)), rows)
    _image(part["bad"], drawn, f"bad masks $B_i$ (×)\n{len(rows)} of {len(x.bad)}")
    part["bad"].scatter(*x.found.points[rows].T, s=5, color="black", marker="x", linewidth=0.9)
    _heatmap(part["logits"], x.student, "logits $o_i^s$", ": ")
    uncertain, mil = "\\mathcal{L}_{uncertainty}", "\\mathcal{L}_{MIL}"
    value = float(losses.uncertainty_loss(x.student[None], x.bad[None], config.reduction, config.mask_reduction))
    total = "Σ_j" if config.reduction == "sum" else "(1/C)\\ Σ_j"
    text = f"Eq. (3)\n\n${uncertain} = -{total}\\ \\log\\ p^{{s,j}}$\n"
    text += f"{config.mask_reduction} over $B_i$, here {value:.2f}\n\n"
    text += f"${mil}$ of $o_i^s$ as in row 1\n\n$\\mathcal{{L}}_s$ = $λ_1$ ${mil}$ + $λ_2$ ${uncertain}$\n"
    _box(part["loss"], f"{text}$λ_1$ = {config.lambda_mil:g}, $λ_2$ = {config.lambda_uncertainty:g}", RULE)
    _arrows(part, "tokens", "teacher", "entropy", "rule", "bad", "loss")
    _arrows(part, "tokens", "student", "logits", "loss")
    _training_arrow(part["loss"], part["student"], -0.015)


def _inference(row: SubFigure, profile: Profile, dataset_name: str, x: SimpleNamespace, shown: int) -> None:
    """Draw row 3: a test image, SAM's masks, the student's scores, and the labelled masks that remain."""
    row.suptitle("3  Inference: any image, no label", **HEADING)
    names = ["image", "SAM", "masks", "tokens", "student", "scores", "rule", "labelled"]
    part = row.subplot_mosaic([names], width_ratios=(1.5, 1.1, 1.5, 1.1, 1.3, 1.1, 1.4, 1.5))
    data, config = stages.dataset(profile, dataset_name), profile.inference
    image, found = data.image(shown), stages.embeddings(profile, dataset_name)[shown]
    p = inference.probabilities(x.heads.student, found.tokens)
    labelled, above = inference.label_masks(p, found, config), int((p.max(1) >= config.score_threshold).sum())
    _image(part["image"], image, "the user's image")
    _box(part["SAM"], "the same SAM,\nthe same grid\n\n(frozen)", FROZEN)
    _image(part["masks"], figures.sam_masks(image, found), f"{len(found.masks)} masks,\nno labels")
    _heatmap(part["tokens"], found.tokens.reshape(len(found.masks), -1), "their tokens $m$")
    _head(part["student"], x.heads.student, TRAINED, "student $θ^s$\n(trained)")
    _heatmap(part["scores"], p, "scores softmax($o^s$)")
    among = "masks of a class" if config.nms_per_class else "all masks"
    text = f"score ≥ {config.score_threshold:g}\n{above} of {len(p)} remain\n\nNMS at IoU {config.nms_iou:g}\n"
    _box(part["rule"], f"{text}among {among}\n{len(labelled.index)} of {above} remain", RULE)
    figures.annotate(part["labelled"], image, labelled.semantic_map(), x.names)
    _decorate(part["labelled"], "masks with class names")
    _arrows(part, *names)


def _training_sheet(part: Axes, profile: Profile, names: list[str], source: str) -> None:
    """Draw the first training image of each class, for up to 12 classes, evenly spaced in the list."""
    made = stages.training_images(profile, source)
    table = made.table[made.table["class"].isin(names)].groupby("class")["file"].agg(["size", "first"])
    found = [name for name in names if name in table.index]  # a crawl may find nothing for a class
    shown = [found[j] for j in np.linspace(0, len(found) - 1, min(12, len(found))).round().astype(int)]
    title = f"{table['size'].sum()} training images from a {IMAGE_SOURCES.find(profile.sources[source].kind).words}"
    part.set_title(f"{title},\none each of {len(shown)} classes", pad=16)
    part.axis("off")
    across = math.ceil(math.sqrt(len(shown)))
    width, height = 1 / across, 1 / math.ceil(len(shown) / across)
    for n, name in enumerate(shown):
        place = (n % across * width, 1 - (n // across + 1) * height, 0.95 * width, height - 0.07)
        image = image_files.read(made.folder / table.loc[name, "first"])
        _image(part.inset_axes(place, anchor="N"), image, _cut(name, 14))


def _decorate(part: Axes, title: str, style: dict[str, Any] = PLAIN, below: bool = False) -> None:
    part.set(xticks=[], yticks=[], xlabel=title if below else "", title="" if below else title)
    part.spines[:].set(visible=True, **style)


def _box(part: Axes, text: str, style: dict[str, Any], title: str = "") -> None:
    _decorate(part, title, style)
    part.set_facecolor("white" if style is PLAIN else (*style["color"], 0.12))
    part.text(0.5, 0.5, text, ha="center", va="center", transform=part.transAxes, linespacing=1.3)


def _image(part: Axes, image: np.ndarray, title: str, style: dict[str, Any] = PLAIN, below: bool = False) -> None:
    figures.show(part, image)
    _decorate(part, title, style, below)


def _heatmap(part: Axes, values: Any, title: str, separator: str = "\n") -> None:
    """Draw (m, ...) numbers as m rows; the colours span 98% of them, so that outliers hide nothing."""
    rows = np.asarray(values).reshape(len(values), -1)
    low, high = np.quantile(rows, (0.01, 0.99))
    part.imshow(rows, aspect="auto", interpolation="nearest", vmin=low, vmax=high)
    _decorate(part, title + separator + " × ".join(map(str, values.shape)))


def _head(part: Axes, model: nn.Module, style: dict[str, Any], title: str) -> None:
    """Draw the widths of a head's layers as numbers and as the logarithmic heights of bars."""
    _box(part, "", style, title)
    weights = [layer.weight for layer in model.layers if isinstance(layer, nn.Linear)]  # (outputs, inputs) each
    sizes = np.array([weights[0].shape[1], *(weight.shape[0] for weight in weights)])
    heights = np.log2(sizes) + 3
    bars = part.bar(range(len(sizes)), heights, 0.7, -heights / 2, facecolor="white", edgecolor=style["color"])
    part.bar_label(bars, sizes, label_type="center", rotation=90)
    part.set(ylim=(-0.55 * heights.max(), 0.55 * heights.max()))


def _arrows(part: dict[str, Axes], *names: str, style: dict[str, Any] = PLAIN) -> None:
    """Draw an arrow from each part to the next, level or upright, through the centre of the smaller of the two."""
    for a, b in itertools.pairwise(part[name] for name in names):
        one, other = a.get_subplotspec(), b.get_subplotspec()
        level = set(one.colspan).isdisjoint(other.colspan)
        smaller = len(one.rowspan) <= len(other.rowspan) if level else len(one.colspan) <= len(other.colspan)
        middle = (a if smaller else b).transAxes
        start, end = ((axes.transAxes, middle) if level else (middle, axes.transAxes) for axes in (a, b))
        look = ARROW | style | {"patchA": a.patch, "patchB": b.patch}
        a.annotate("", (0.5, 0.5), (0.5, 0.5), end, start, look, annotation_clip=False).set_in_layout(False)


def _training_arrow(a: Axes, b: Axes, fraction: float) -> None:
    """Draw the arrow from a loss, or from images, to the head that they train, below both."""
    b.set_xlabel("\n")  # leaves space
    look = ARROW | TRAINED | {"connectionstyle": f"bar,fraction={fraction}"}
    a.annotate("", (0.5, 0), (0.5, 0), b.transAxes, a.transAxes, look, annotation_clip=False).set_in_layout(False)


def _listed(names: list[str], width: int, lines: int) -> str:
    whole = (name.replace(" ", "\N{NO-BREAK SPACE}") if len(name) < width else name for name in names)
    return textwrap.fill(", ".join(whole), width, max_lines=lines, placeholder=" …")


def _cut(name: str, width: int) -> str:
    return name if len(name) <= width else f"{name[: width - 1]}…"
