"""Which images the figures show, and what came of them: chosen by a rule, so that nobody has picked them by eye."""

from collections.abc import Sequence

import numpy as np

from usam.data.datasets import Example
from usam.errors import UserError
from usam.evaluation.diagnostics import found_objects
from usam.method.inference import LabelledMasks

QUANTILES = {"best": 1.0, "typical": 0.5, "worst": 0.0}


def at_quantiles(values: np.ndarray, quantiles: Sequence[float]) -> list[int]:
    """Return the places of the values at some quantiles, each place once, in their order.

    Args:
        values: (N,) of images, such as `Scores.image_iou`; those with NaN are left out.
        quantiles: in [0, 1], 0 for the lowest value and 1 for the highest; the value at the nearest rank is taken.

    Raises:
        UserError: all values are NaN.
    """
    known = np.flatnonzero(~np.isnan(values))
    if not len(known):
        raise UserError("no image has an object or a label, so there is no example to show: use more images")
    ranked = known[np.argsort(values[known], kind="stable")]
    return list(dict.fromkeys(int(ranked[round(q * (len(ranked) - 1))]) for q in quantiles))


def choose(values: np.ndarray, example: str | int) -> int:
    """Return the place of one image: "best", "typical" (the median), "worst", or its number from 0 on.

    Raises:
        UserError: `example` is none of these.
    """
    if example in QUANTILES:
        return at_quantiles(values, [QUANTILES[example]])[0]
    if isinstance(example, int) and 0 <= example < len(values):
        return example
    known = ", ".join(f"'{name}'" for name in QUANTILES)
    raise UserError(f"example is {example!r}: choose {known} or a number from 0 to {len(values) - 1}")


def spread(values: np.ndarray, count: int) -> dict[str, int]:
    """Return up to `count` places at evenly spaced quantiles from best to worst, each under a word for its quantile."""
    words = {quantile: name for name, quantile in QUANTILES.items()}
    found: dict[str, int] = {}
    for quantile in np.linspace(1, 0, count).tolist():
        (place,) = at_quantiles(values, [quantile])
        if place not in found.values():
            found[words.get(quantile, f"quantile {quantile:.2f}")] = place
    return found


def outcome(example: Example, labelled: LabelledMasks, class_names: Sequence[str]) -> str:
    """Say of how many objects a mask has the right class, which ones are missed, and what lies on background."""
    found = found_objects(example, labelled)
    names = [class_names[one.label] for one in example.instances if not one.crowd]
    missed = ", ".join(name for name, right in zip(names, found, strict=True) if not right)
    objects = f"{found.sum()} of {len(found)} object{'' if len(found) == 1 else 's'} labelled correctly"
    background = example.semantic == 0
    painted = (labelled.semantic_map()[background] > 0).mean() if background.any() else 0.0
    return f"{objects}{f' (missed: {missed})' if missed else ''}, {painted:.0%} of the background painted"


def taken_for(confusion: np.ndarray, class_names: Sequence[str]) -> str:
    """Say what became of the class that an image shows most of: "dog is 71% background, 20% cat, 9% dog".

    `confusion` are the pixel counts of the image, (C + 1, C + 1), rows are the truth, 0 is background. Shares below 5%
    are left out.
    """
    names = ["background", *class_names]
    truth = int(confusion[1:].sum(1).argmax()) + 1
    shares = confusion[truth] / max(confusion[truth].sum(), 1)
    parts = [f"{shares[k]:.0%} {names[k]}" for k in np.argsort(-shares, kind="stable") if shares[k] >= 0.05]
    return f"{names[truth]} is {', '.join(parts)}" if parts else "no object is there"
