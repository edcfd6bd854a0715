"""The paper's Figures 1 and 2, drawn from what a run has on disk: its images, its tensors, its profile's numbers."""

import math
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from usam import machine
from usam.config import Profile
from usam.data import image_files
from usam.data.datasets import VOID, Dataset
from usam.evaluation.scores import by_head
from usam.method import head, inference
from usam.method.masks import MaskEmbeddings, coarser
from usam.pipeline import stages
from usam.registry import IMAGE_SOURCES
from usam.report import boxes, figures
from usam.report.boxes import FROZEN, PLAIN, RULE, TRAINED, WIDTH, columns, shape, wide


def problem(profile: Profile, dataset_name: str, source: str, seed: int) -> Figure:
    """Figure 1: class names, the images made from them, U-SAM, two of the user's images without and with their masks.

    The user's images are test images of data set `dataset_name`, chosen without a look at any score: from evenly spaced
    places of the split, the next one that shows two classes or more. Their masks are the output of the student that
    was trained on images of `source` with `seed`.
    """
    names, data = stages.class_names(profile, dataset_name), stages.dataset(profile, dataset_name)
    student, store = stages.heads(profile, dataset_name, source, seed).student, stages.embeddings(profile, dataset_name)
    annotate = by_head(student, profile.inference)
    figure, low, high, half = plt.figure(figsize=(WIDTH, 3.6)), 0.1, 3.1, 1.5
    chosen = _test_images(data, 2)
    most = max(wide(data.image(i), half, 2.2) for i in chosen)
    (a, b, c, d, e) = columns(1.75, 3.9, 1.7, most, most)
    text, title = boxes.listed(names, 22, 14), f"all that the user gives:\n$C$ = {len(names)} class names"
    users = boxes.box(figure, (a[0], low, a[1], high), text, PLAIN, title, 9)
    made = _training_sheet(figure, (b[0], low, b[1], high), profile, names, source)
    usam = boxes.box(figure, (c[0], low, c[1], high), "", PLAIN, "U-SAM")
    left, width, part = c[0] + 0.15, c[1] - 0.3, (high - 0.75) / 2
    masks = boxes.box(figure, (left, low + high - 0.3 - part, width, part), "", FROZEN, "SAM's masks (frozen)")
    boxes.show(masks, _nameless(data.image(chosen[0]), store[chosen[0]])[1])
    boxes.network(figure, (left, low + 0.15, width, part), "+ a small head (trained)", student, TRAINED)
    boxes.chain(figure, users, made, usam)
    for n, i in enumerate(chosen):
        y = low + (1 - n) * (high - half)
        titles = ("", "") if n else ("the user's images", "the same, labelled by U-SAM")
        plain = boxes.picture(figure, (d[0], y, most, half), titles[0], data.image(i))
        semantic = annotate(data[i], store[i]).semantic_map()
        named = boxes.labelled(figure, (e[0], y, most, half), titles[1], data.image(i), semantic, names)
        boxes.chain(figure, usam, plain, named)
    return figure


def architecture(profile: Profile, dataset_name: str, source: str, seed: int) -> Figure:
    """Figure 2: the training by Eq. (1) and (2), the distillation by Eq. (3), and inference, with one run's tensors.

    The training image is the first of `source` whose class is one of `dataset_name`; the test image is the first of those
    in `problem`. Row 1 shows the teacher at the end of its training. The heads were trained with `seed`; the numbers
    are the profile's and those of the two images.
    """
    figure = plt.figure(figsize=(WIDTH, 8.8))
    bag = _bag(profile, dataset_name, source, seed)
    tokens = _sam_part(figure, 5.3, profile, source, bag)
    _head_part(figure, 5.3, profile, bag, tokens)
    _distillation(figure, 2.84, profile, bag)
    _inference(figure, 0.45, profile, dataset_name, bag)
    boxes.legend(figure)
    return figure


class _Bag(NamedTuple):
    """A training image and what SAM and the heads make of it.

    Attributes:
        names, label: the C classes, and the image's.
        image, points, found: (H, W, 3), (d, 2) of (x, y) in pixels, and its mask embeddings.
        features, prompts: what goes into SAM's mask decoder, (256, h, w) and (d, n, 256).
        heads: teacher and student.
        tokens: (d, 1024), standardised as the heads see them.
        teacher, student: their logits, (d, C).
        labels, bad: (1, C) one-hot, and B_i as (d,) bool.
    """

    names: list[str]
    label: str
    image: np.ndarray
    points: np.ndarray
    found: MaskEmbeddings
    features: Tensor
    prompts: Tensor
    heads: stages.Heads
    tokens: Tensor
    teacher: Tensor
    student: Tensor
    labels: Tensor
    bad: Tensor


def _bag(profile: Profile, dataset_name: str, source: str, seed: int) -> _Bag:
    names, made = stages.class_names(profile, dataset_name), stages.training_images(profile, source)
    row = int(made.table["class"].isin(names).to_numpy().argmax())
    label, image = made.table["class"][row], image_files.read(made.folder / made.table["file"][row])
    heads = stages.heads(profile, dataset_name, source, seed)
    found, features, prompts = _decoded(profile, image)
    flat = torch.tensor(found.tokens).flatten(1).to(machine.device())
    tokens, teacher, student = heads.teacher.standardised(flat), heads.teacher(flat), heads.student(flat)
    labels = torch.tensor([[float(name == label) for name in names]])
    limit = profile.distillation.entropy_threshold * math.log(len(names))
    bad = head.bad_masks(teacher[None].cpu(), labels, limit)[0]
    outputs = (tokens.cpu(), teacher.cpu(), student.cpu())
    return _Bag(names, label, image, found.points, found, features, prompts, heads, *outputs, labels, bad)


def _decoded(profile: Profile, image: np.ndarray) -> tuple[MaskEmbeddings, Tensor, Tensor]:
    """SAM's answer, image features (256, h, w) and prompts (points, n, 256): hooks on a SAM of our own."""
    kept: dict[str, Tensor] = {}
    extract = stages.extractor(profile)
    extract.sam.image_encoder.register_forward_hook(lambda _m, _i, out: kept.update(features=out[0]))
    extract.sam.prompt_encoder.register_forward_hook(lambda _m, _i, out: kept.update(prompts=out[0]))  # not the dense
    found, side = extract(image), profile.sam.points_per_side
    used = np.arange(side**2) if profile.grid is None else coarser(side, profile.grid)
    return found.at(used), kept["features"].float().cpu(), kept["prompts"][used].float().cpu()


LANE, BETWEEN = 1.25, 0.35  # inches: row 1 has two lanes, their titles on the outside, so that arrows can pass


def _row_1(bag: _Bag) -> list[tuple[float, float]]:
    side = wide(bag.image, LANE, 1.5)
    return columns(1.5, side, 0.9, LANE, 0.8, max(side, 1.1), 1.25, 1.0, 1.15)


def _sam_part(figure: Figure, low: float, profile: Profile, source: str, bag: _Bag) -> Axes:
    """Row 1 up to SAM's masks and the axes of its tokens, which are returned."""
    top, (a, b, c, d, e, f, *_) = low + LANE + BETWEEN, _row_1(bag)
    boxes.header(figure, top + LANE + 0.42, "1  Training: the image's label alone teaches the head")
    text = boxes.listed(bag.names, 25, 7)
    users = boxes.box(figure, (a[0], top, a[1], LANE), text, PLAIN, f"class names\n$C$ = {len(bag.names)}")
    config = profile.sources[source]
    source_kind = IMAGE_SOURCES.find(config.kind)
    text, edge = source_kind.words.replace(" ", "\n"), PLAIN
    if source_kind.model(config.settings):
        text, edge = f"{text}\n(frozen)", FROZEN
    maker = boxes.box(figure, (a[0], low, a[1], LANE), f"{text}\n\n{config.per_class} images a class", edge)
    text = f"training image $x_i$\n“{boxes.cut(bag.label, 16)}”"
    image = boxes.picture(figure, (b[0], low, b[1], LANE), text, bag.image, True)
    grid = boxes.picture(figure, (b[0], top, b[1], LANE), f"grid of points\n$d$ = {len(bag.points)}", bag.image)
    _points(grid, bag.points, bag, color="white", edgecolor="black", linewidth=0.4)
    prompt = boxes.box(figure, (c[0], top, c[1], LANE), "SAM's\nprompt\nencoder\n\n(frozen)", FROZEN)
    encoder = boxes.box(figure, (c[0], low, c[1], LANE), "SAM's\nimage\nencoder\n\n(frozen)", FROZEN)
    prompts = boxes.heat(figure, (d[0], top, d[1], LANE), f"prompts\n{shape(bag.prompts)}", bag.prompts)
    text = f"image features\n{shape(bag.features)}"
    features = boxes.picture(figure, (d[0], low, d[1], LANE), text, boxes.principal(bag.features), True)
    decoder = boxes.box(figure, (e[0], low, e[1], 2 * LANE + BETWEEN), "SAM's\nmask\ndecoder\n\n(frozen)", FROZEN)
    tokens = boxes.heat(figure, (f[0], top, f[1], LANE), f"mask tokens $m_i$\n{shape(bag.tokens)}", bag.tokens)
    masks = boxes.picture(figure, (f[0], low, f[1], LANE), *_nameless(bag.image, bag.found), True)
    boxes.chain(figure, users, maker, image, encoder, features, decoder, tokens)
    boxes.chain(figure, image, grid, prompt, prompts, decoder, masks)
    return tokens


def _head_part(figure: Figure, low: float, profile: Profile, bag: _Bag, tokens: Axes) -> None:
    """Row 1 from the tokens on, and back: θ, Eq. (1), Eq. (2), which trains θ."""
    top, (g, h, i) = low + LANE + BETWEEN, _row_1(bag)[-3:]
    theta = boxes.network(figure, (g[0], top, g[1], LANE), "head $θ$\n(trained)", bag.heads.teacher, TRAINED)
    logits = boxes.heat(figure, (h[0], top, h[1], LANE), f"logits $o_i$\n{shape(bag.teacher)}", bag.teacher)
    k = max(1, math.ceil(len(bag.teacher) / profile.head.a))
    largest = torch.zeros_like(bag.teacher, dtype=torch.bool).scatter(0, bag.teacher.topk(k, dim=0).indices, True)
    text = f"Eq. (1): $k$ = {k}\nlargest of a class"
    top_k = boxes.heat(figure, (i[0], top, i[1], LANE), text, bag.teacher, largest)
    boxes.frame(top_k, RULE)
    text = f"their means: bag scores $s_i$ ({len(bag.names)})\nblack: “{boxes.cut(bag.label, 30)}”"
    scores = boxes.axes(figure, (h[0], low, sum(i) - h[0], LANE), text, True)
    colors = ["black" if name == bag.label else "0.7" for name in bag.names]
    scores.bar(range(len(colors)), head.bag_scores(bag.teacher[None], profile.head.a)[0], color=colors)
    scores.margins(y=0.08)
    scores.axhline(0, color="black", linewidth=0.6)
    value = float(head.mil_loss(bag.teacher[None], bag.labels, profile.head.a)) + 0.0  # no "-0.00"
    formula = "$\\mathcal{L}_{MIL} = -Σ_j\\ y_i^j\\ \\log\\ p_i^j$\n$p_i$ = softmax($s_i$)"
    text = f"Eq. (2)\n\n{formula}\n\nhere {value:.2f}"
    loss = boxes.box(figure, (g[0], low, g[1], LANE), text, RULE)
    boxes.chain(figure, tokens, theta, logits, top_k, scores, loss)
    boxes.arrow(figure, loss, theta, TRAINED)


def _distillation(figure: Figure, low: float, profile: Profile, bag: _Bag) -> None:
    high, u, count, side = 1.3, profile.distillation, len(bag.names), wide(bag.image, 1.3, 1.5)
    text = "2  Distillation: the student learns to be unsure of the teacher's bad masks"
    boxes.header(figure, low + high + 0.42, text)
    a, b, c, d, e, f, g, h = ((x, low, w, high) for x, w in columns(1.1, 1.25, side, 1.4, side, 2.1, 1.0, 1.25))
    tokens = boxes.heat(figure, a, f"mask tokens $m_i$\n{shape(bag.tokens)}", bag.tokens)
    teacher = boxes.network(figure, b, "teacher $θ^t$\n(now frozen)", bag.heads.teacher, FROZEN)
    colors = plt.get_cmap("viridis")(head.entropy(bag.teacher).numpy() / math.log(count))[:, :3]
    text = f"its entropy $H$: dark 0,\nbright ln $C$ = {math.log(count):.2f}"
    unsure = boxes.picture(figure, c, text, figures.sam_masks(bag.image, bag.found, colors, alpha=0.8))
    limit = f"{u.entropy_threshold:g} ln $C$ = {u.entropy_threshold * math.log(count):.2f}"
    text = f"bad is a mask with\n\n$H$ > {limit}\n\nor with a class that\nis not on the image"
    rule = boxes.box(figure, d, text, RULE)
    rows = bag.bad.nonzero()[:, 0].tolist()
    drawn = figures.sam_masks(bag.image, bag.found, np.array([figures.PURPLE] * len(rows)), rows)
    bad = boxes.picture(figure, e, f"bad masks $B_i$ (×)\n{len(rows)} of {len(bag.bad)}", drawn)
    _points(bad, bag.points[bag.bad.numpy()], bag, color="black", marker="x", linewidth=0.9)
    _points(bad, bag.points[~bag.bad.numpy()], bag, color="white", edgecolor="black", linewidth=0.4)
    uncertain, mil = "\\mathcal{L}_{uncertainty}", "\\mathcal{L}_{MIL}"
    value, over = float(head.uncertainty_loss(bag.student[None], bag.bad[None], u.reduction)), "Σ_j"
    over = over if u.reduction == "sum" else f"(1/C)\\ {over}"
    text = f"${uncertain} = -{over}\\ \\log\\ p^{{s,j}}$   Eq. (3)\nmean over $B_i$, here {value:.2f}\n\n"
    text += f"${mil}$ of $o_i^s$ as in row 1\n\n$\\mathcal{{L}}_s$ = $λ_1$ ${mil}$ + $λ_2$ ${uncertain}$\n"
    text += f"$λ_1$ = {u.lambda_mil:g}, $λ_2$ = {u.lambda_uncertainty:g}"
    loss = boxes.box(figure, f, text, RULE)
    logits = boxes.heat(figure, g, f"logits $o_i^s$\n{shape(bag.student)}", bag.student)
    student = boxes.network(figure, h, "student $θ^s$\n(trained)", bag.heads.student, TRAINED)
    boxes.chain(figure, tokens, teacher, unsure, rule, bad, loss)
    boxes.chain(figure, student, logits, loss)
    boxes.below(figure, loss, student, 0.13, 0.3, TRAINED)
    boxes.below(figure, tokens, student, 0.27, 0.7)


def _inference(figure: Figure, low: float, profile: Profile, dataset_name: str, bag: _Bag) -> None:
    data, config, high = stages.dataset(profile, dataset_name), profile.inference, 1.3
    at = _test_images(data, 1)[0]
    image, found = data.image(at), stages.embeddings(profile, dataset_name)[at]
    boxes.header(figure, low + high + 0.42, "3  Inference: any image, and no label")
    side = wide(image, high, 1.9)
    a, b, c, d, e, f, g, h = ((x, low, w, high) for x, w in columns(side, 1.1, side, 1.1, 1.25, 1.1, 1.4, side))
    users = boxes.picture(figure, a, "the user's image", image)
    same = boxes.box(figure, b, "the same SAM,\nthe same grid\n\n(frozen)", FROZEN)
    masks = boxes.picture(figure, c, *_nameless(image, found))
    flat = bag.heads.student.standardised(torch.tensor(found.tokens).flatten(1).to(machine.device())).cpu()
    tokens = boxes.heat(figure, d, f"their tokens $m$\n{shape(flat)}", flat)
    student = boxes.network(figure, e, "student $θ^s$\n(trained)", bag.heads.student, TRAINED)
    p = inference.probabilities(bag.heads.student, found.tokens)
    scores = boxes.heat(figure, f, f"scores softmax($o^s$)\n{shape(p)}", p)
    kept, sure = inference.label_masks(p, found, config), int((p.max(1) >= config.score_threshold).sum())
    among = "masks of a class" if config.nms_per_class else "all masks"
    text = f"score ≥ {config.score_threshold:g}\n{sure} of {len(p)} stay\n\nNMS at IoU {config.nms_iou:g}\n"
    rule = boxes.box(figure, g, f"{text}among {among}\n{len(kept.index)} of {sure} stay", RULE)
    named = boxes.labelled(figure, h, "masks with names", image, kept.semantic_map(), bag.names)
    boxes.chain(figure, users, same, masks, tokens, student, scores, rule, named)


def _nameless(image: np.ndarray, found: MaskEmbeddings) -> tuple[str, np.ndarray]:
    """A title, and the picture of all masks in random colours."""
    count = len(found.masks)
    return f"{count} masks\nwithout names", figures.sam_masks(image, found, np.random.default_rng(0).random((count, 3)))


def _points(part: Axes, points: np.ndarray, bag: _Bag, **look: str | float) -> None:
    """Some of the bag's points on its picture, so small that all d have room there."""
    part.apply_aspect()  # a strip is narrower than its place
    pitch = min(part.bbox.size) * 72 / part.figure.dpi / math.sqrt(len(bag.points))  # typographic points
    part.scatter(*points.T, s=min(0.4 * pitch, 5) ** 2, **look)


def _training_sheet(figure: Figure, area: boxes.Area, profile: Profile, names: list[str], source: str) -> Axes:
    """The first image of each class, of up to 12 evenly spaced in the list; the axes are around all of them."""
    made, (left, bottom, width, height) = stages.training_images(profile, source), area
    table = made.table[made.table["class"].isin(names)].groupby("class")["file"].agg(["size", "first"])
    there = [name for name in names if name in table.index]  # a crawl can come back with nothing for a class
    shown = [there[j] for j in np.linspace(0, len(there) - 1, min(12, len(there))).round().astype(int)]
    how = f"from a {IMAGE_SOURCES.find(profile.sources[source].kind).words}"
    text = f"{table['size'].sum()} training images {how}, one each of {len(shown)} classes:"
    around = boxes.axes(figure, area, f"{text}\nno image is labelled by hand, no test image is used")
    around.axis("off")
    across = math.ceil(math.sqrt(len(shown)))
    wide, high = width / across, height / -(-len(shown) // across)
    for n, name in enumerate(shown):
        place = (left + n % across * wide + 0.03, bottom + height - (n // across + 1) * high, wide - 0.06, high - 0.2)
        image = image_files.read(made.folder / table.loc[name, "first"])
        boxes.picture(figure, place, boxes.cut(name, 16), image).set_anchor("N")  # close to its name
    return around


def _test_images(data: Dataset, count: int) -> list[int]:
    """Places of `count` images: from evenly spaced places on, the next one with two classes or more, if there is one.

    (To look at every image first would be to read all of COCO.)
    """
    chosen: list[int] = []
    for start in np.arange(count) * len(data) // count:
        free = [i for i in np.roll(np.arange(len(data)), -start).tolist() if i not in chosen]
        chosen.append(next((i for i in free if len(set(np.unique(data[i].semantic)) - {0, VOID}) > 1), free[0]))
    return chosen
