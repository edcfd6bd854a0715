"""How good is the small SAM? `python -m miniature.training.measure`

Two measurements on held-out drawings (validation seeds, which its training never draws):

* one click, best of three: a random visible pixel of a whole object (or of a part) is clicked; the best IoU of the
  three multimask outputs, enlarged as segment-anything does, with that object (that part). Objects and parts of at
  least one 8 x 8 patch of the encoder's input count.
* probe: an MLP learns the class from the tokens of grid points on single-object drawings, and is scored on grid
  points on objects of validation scenes, 20 categories. It tells how much meaning the tokens carry.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from miniature import datasets, world
from miniature.sam import IMAGE_SIZE, STRIDE
from miniature.splits import rng_of
from miniature.world import Picture
from usam import profiles
from usam.data import published
from usam.data.class_names import VOC
from usam.method.masks import point_grid
from usam.method.sam import Extractor
from usam.pipeline import stages


def one_click(extractor: Extractor, scenes: int) -> dict[str, float]:
    """Mean best-of-three IoU of whole objects and of parts over `scenes` held-out scenes."""
    found: dict[str, list[float]] = {"whole": [], "part": []}
    for index in tqdm(range(scenes), desc="one click", unit="scene"):
        rng = rng_of("val", "one-click", index)
        picture = datasets.test_scene("val", "one-click", index, list(world.DRAWINGS))
        targets = list(_targets(picture))
        if targets:
            clicks = np.float32([_pixel(mask, rng) for _, mask in targets])
            logits, _, _, inner = extractor.four_masks(picture.image, clicks)
            full = extractor.sam.postprocess_masks(logits[:, 1:], inner, picture.objects.shape) > 0
            for (kind, mask), three in zip(targets, full.cpu().numpy(), strict=True):
                found[kind].append(max(_iou(m, mask) for m in three))
    return {f"{kind}_iou": float(np.mean(values)) for kind, values in found.items()} | {
        f"{kind}_count": len(values) for kind, values in found.items()
    }


def _targets(picture: Picture) -> Iterator[tuple[str, np.ndarray]]:
    """Visible masks of all named objects and of their parts that are large enough."""
    smallest = (STRIDE * max(picture.objects.shape) / IMAGE_SIZE) ** 2
    for number, name in enumerate(picture.names, 1):
        whole = picture.objects == number
        if name is None or whole.sum() < smallest:
            continue
        yield "whole", whole
        for part in np.unique(picture.parts[whole]):
            if (mask := picture.parts == part).sum() >= smallest:
                yield "part", mask


def _pixel(mask: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """A random pixel (x, y) of the mask; SAM itself adds the half that lies between a pixel and its centre."""
    ys, xs = np.nonzero(mask)
    k = rng.integers(len(ys))
    return int(xs[k]), int(ys[k])


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / max((a | b).sum(), 1)


def probe(extractor: Extractor, per_class: int, scenes: int) -> dict[str, float]:
    """Accuracy of an MLP on tokens: trained on studio and web drawings, scored on validation scenes."""
    training = [
        _points(extractor, picture)
        for name in tqdm(VOC, desc="probe, training", unit="class")
        for k in range(per_class)
        for picture in (
            world.studio(name, rng_of("train", "probe", name, k)),
            world.web(name, rng_of("train", "probe-web", name, k)),
        )
    ]
    scored = [
        _points(extractor, datasets.test_scene("val", "probe", k, list(VOC)))
        for k in tqdm(range(scenes), desc="probe, scenes", unit="scene")
    ]
    (x, y), (u, v) = (tuple(map(np.concatenate, zip(*pairs, strict=True))) for pairs in (training, scored))
    model = make_pipeline(StandardScaler(), MLPClassifier((256,), early_stopping=True, max_iter=60, random_state=0))
    model.fit(x, y)
    return {"probe_accuracy": float(model.score(u, v)), "probe_points": len(v), "probe_training_points": len(y)}


def _points(extractor: Extractor, picture: Picture) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (n, 1024) and class names (n,) of the grid points that lie on named objects."""
    points = point_grid(picture.objects.shape, extractor.config.points_per_side)
    things = picture.objects[points[:, 1].astype(int), points[:, 0].astype(int)]
    names = np.array([None, *picture.names], object)[things]
    on_object = np.array([n is not None for n in names], bool)
    if not on_object.any():
        return np.zeros((0, 1024), np.float32), np.zeros(0, object)
    _, _, tokens, _ = extractor.four_masks(picture.image, points[on_object])
    return tokens.flatten(1).cpu().numpy(), names[on_object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", type=Path, help="safetensors; those of the profile by default")
    parser.add_argument("--scenes", type=int, default=500, help="held-out scenes for the one-click score")
    parser.add_argument("--per-class", type=int, default=30, help="drawings of each style and class for the probe")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    profile = profiles.load("mini")
    if arguments.weights:
        profile = profile.changed({"sam.checkpoint": str(arguments.weights.resolve())})
    extractor = stages.extractor(profile)
    result = one_click(extractor, arguments.scenes) | probe(extractor, arguments.per_class, arguments.scenes // 2)
    print(json.dumps(result | {"weights": published.checkpoint(profile.sam).name}, indent=1))


if __name__ == "__main__":
    main()
