"""Changed granularity (paper 4): the user's classes gather several of a data set's."""

from collections.abc import Mapping, Sequence

import numpy as np

from usam.config import InferenceConfig, Profile
from usam.data.class_names import SUPERCLASSES
from usam.evaluation.scores import Annotate
from usam.method import inference
from usam.method.head import MaskClassifier


def some_of(profile: Profile, dataset_name: str, class_names: Sequence[str]) -> Profile:
    """The profile that asks for some classes of data set `dataset_name` alone: the others are background."""
    config = profile.datasets[dataset_name].model_copy(update={"groups": {name: [name] for name in class_names}})
    return profile.model_copy(update={"datasets": profile.datasets | {dataset_name: config}})


def regrouped(profile: Profile, class_names: Sequence[str]) -> Profile:
    """The profile that asks for the paper's five superclasses on VOC, with images that are generated for these names.

    Args:
        profile: with VOC and a synthetic source.
        class_names: the classes that its VOC has; of others nothing is asked.
    """
    groups = {name: [m for m in members if m in class_names] for name, members in SUPERCLASSES.items()}
    voc = profile.datasets["voc"].model_copy(update={"groups": {k: v for k, v in groups.items() if v}})
    sources = {"synthetic": profile.sources["synthetic"]}
    return profile.model_copy(update={"datasets": {"voc": voc}, "sources": sources})


def by_sums(
    head: MaskClassifier, class_names: Sequence[str], groups: Mapping[str, Sequence[str]], config: InferenceConfig
) -> Annotate:
    """Labels each mask with the group whose classes have the largest probability together, for a head of the classes.

    Args:
        head: over `class_names`.
        class_names: C names in the head's order.
        groups: a new name -> some of them.
        config: thresholds.
    """
    member = np.array([[n in group for group in groups.values()] for n in class_names], np.float32)  # (C, groups)
    return lambda _example, e: inference.label_masks(inference.probabilities(head, e.tokens) @ member, e, config)
