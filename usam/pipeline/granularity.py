"""Changed granularity (paper 4): the user's classes gather several of a data set's."""

from collections.abc import Mapping, Sequence

import numpy as np

from usam.baselines import Annotate
from usam.config import InferenceConfig
from usam.data.class_names import SUPERCLASSES
from usam.method import inference
from usam.method.head import MaskClassifier
from usam.profiles import Profile


def regrouped(profile: Profile, class_names: Sequence[str], source: str = "synthetic") -> Profile:
    """The profile that asks for the paper's five superclasses on VOC, with images of `source` for these names.

    The paper generates them: "synthetic". `profile` has VOC and this source; `class_names` are the classes that its VOC
    has.
    """
    groups = {name: [m for m in members if m in class_names] for name, members in SUPERCLASSES.items()}
    voc = profile.datasets["voc"].model_copy(update={"groups": {k: v for k, v in groups.items() if v}})
    sources = {source: profile.sources[source]}
    return profile.model_copy(update={"datasets": {"voc": voc}, "sources": sources, "pictured": source})


def by_sums(
    head: MaskClassifier, class_names: Sequence[str], groups: Mapping[str, Sequence[str]], config: InferenceConfig
) -> Annotate:
    """Labels each mask with the group whose classes have the largest probability together.

    `class_names` are the C classes of `head` in its order; each of `groups` is a new name for some of them.
    """
    member = np.array([[n in group for group in groups.values()] for n in class_names], np.float32)  # (C, groups)
    return lambda _example, e: inference.label_masks(inference.probabilities(head, e.tokens) @ member, e, config)
