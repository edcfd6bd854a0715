"""The methods that are scored, behind one interface; `usam.registry.METHODS` lists them.

A method is a function (profile, name of a data set, source of training images, seed) -> `Ready`. What it trains is kept
by the stages, so that a second call finds it. Methods that learn nothing ignore source and seed.
"""

from typing import NamedTuple

from usam import machine
from usam.baselines import Annotate, NameMasks
from usam.baselines.sam_clip import ClipLabeller, by_clip, named_by_clip
from usam.config import InferenceConfig
from usam.evaluation.scores import by_head, named_by_head, nothing, oracle_labels, oracle_masks
from usam.method.head import MaskClassifier
from usam.pipeline import stages
from usam.profiles import Profile


class Ready(NamedTuple):
    """A method that can annotate images, the seconds that its training took, and, if it gives each mask class
    probabilities, these, to which any threshold may be applied."""

    annotate: Annotate
    training_seconds: float | None = None
    name_masks: NameMasks | None = None


def _with_head(head: MaskClassifier, inference: InferenceConfig, seconds: float) -> Ready:
    return Ready(by_head(head, inference), seconds, named_by_head(head))


def u_sam(profile: Profile, dataset_name: str, source: str, seed: int) -> Ready:
    """The student of uncertainty distillation (paper 3.5)."""
    heads = stages.heads(profile, dataset_name, source, seed)
    return _with_head(heads.student, profile.inference, heads.seconds)


def mil_only(profile: Profile, dataset_name: str, source: str, seed: int) -> Ready:
    """The student's teacher: Eq. (2) alone (paper, Table 4)."""
    heads = stages.heads(profile, dataset_name, source, seed)
    return _with_head(heads.teacher, profile.inference, heads.seconds)


def shuffled_labels(profile: Profile, dataset_name: str, source: str, seed: int) -> Ready:
    """A student whose training images have each other's labels: a control, which must know nothing."""
    heads = stages.heads(profile, dataset_name, source, seed, shuffled=True)
    return _with_head(heads.student, profile.inference, heads.seconds)


def shuffled_teacher(profile: Profile, dataset_name: str, source: str, seed: int) -> Ready:
    """That student's teacher at threshold 0: Eq. (3) makes the student unsure of everything, so its score is that of
    painting nothing whether labels leak or not; every mask that the teacher labels is painted here.
    """
    heads = stages.heads(profile, dataset_name, source, seed, shuffled=True)
    lenient = profile.inference.model_copy(update={"score_threshold": 0.0})
    return _with_head(heads.teacher, lenient, heads.seconds)


def in_domain(profile: Profile, dataset_name: str, _source: str, seed: int) -> Ready:
    """A reference: the same head on the same masks, trained on scenes like those of the test, in which a person would
    have had to mark each object. With few scenes it need not be the best.
    """
    (head,) = stages.in_domain_heads(profile, dataset_name, [seed])
    return _with_head(head.model, profile.inference, head.seconds)


def all_background(_profile: Profile, _dataset_name: str, _source: str, _seed: int | None) -> Ready:
    """The floor: no mask is labelled, every pixel is background."""
    return Ready(nothing)


def sam_clip(profile: Profile, dataset_name: str, _source: str, _seed: int | None) -> Ready:
    """SAM's masks, named by CLIP (paper 4, Table 3)."""
    labeller = ClipLabeller(profile.clip, stages.class_names(profile, dataset_name), machine.device())
    return Ready(by_clip(labeller, profile.inference), name_masks=named_by_clip(labeller))


def true_labels(profile: Profile, _dataset_name: str, _source: str, _seed: int | None) -> Ready:
    """A ceiling: our masks, with the labels of the objects that they cover."""
    return Ready(oracle_labels(profile.inference))


def true_masks(profile: Profile, dataset_name: str, source: str, seed: int) -> Ready:
    """A ceiling: true masks, with the labels of our masks that fit them best."""
    return Ready(oracle_masks(stages.heads(profile, dataset_name, source, seed).student))
