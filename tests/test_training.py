"""Training on made-up bags in which one mask an image carries the class and all others are noise."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from usam import machine
from usam.config import DistillationConfig, HeadConfig
from usam.errors import UserError
from usam.evaluation import intervals
from usam.method.head import MaskClassifier
from usam.method.inference import probabilities
from usam.method.losses import bad_masks, entropy
from usam.method.training import Bags, statistics, train

CLASSES, MASKS, DIM = 3, 8, 24
HEAD = HeadConfig(widths=(32, 16, 16), a=10, epochs=25, batch_size=16, learning_rate=3e-3)
SHORT = HeadConfig(widths=(16, 16, 16), epochs=3, batch_size=16)


def bags(images: int = 60, seed: int = 0) -> Bags:
    rng = np.random.default_rng(seed)
    classes = np.arange(images) % CLASSES
    tokens = rng.normal(0, 1, (images, MASKS, DIM))
    tokens[np.arange(images), rng.integers(0, MASKS, images)] += 6 * np.eye(CLASSES, DIM)[classes]
    return in_memory(tokens.astype(np.float16), torch.eye(CLASSES)[classes])


def in_memory(tokens: np.ndarray, labels: torch.Tensor) -> Bags:
    return Bags(tokens.__getitem__, np.arange(len(tokens)), labels)


def tokens_of(some: Bags) -> torch.Tensor:
    return some[torch.arange(len(some))]


def constant_teacher(classes: int, answer: int) -> MaskClassifier:
    """Says `answer` with certainty, whatever it sees."""
    teacher = MaskClassifier(classes, torch.zeros(DIM), torch.ones(DIM), (4, 4, 4)).eval().requires_grad_(False)
    teacher.layers[-1].weight.zero_()
    teacher.layers[-1].bias.copy_(50 * torch.eye(classes)[answer])
    return teacher


def weights_equal(one: MaskClassifier, other: MaskClassifier) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return all(torch.equal(a[k], b[k]) for k in a)


def test_heads_that_are_trained_side_by_side_are_those_that_are_trained_alone(monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 3)
    alone = [train(bags(seed=k), SHORT, seed=k)[0] for k in range(6)]
    together = machine.side_by_side(train, [(bags(seed=k), SHORT, k) for k in range(6)])
    assert all(weights_equal(one, other) for one, (other, _) in zip(alone, together, strict=True))
    assert not weights_equal(alone[0], alone[1])


def test_teacher_finds_the_mask_that_matters():
    teacher, history = train(bags(), HEAD, seed=0)
    assert list(history.columns) == ["epoch", "mil", "uncertainty", "bad", "accuracy"]
    assert history["epoch"].tolist() == list(range(1, 26))
    assert history["accuracy"].iloc[-1] == 1.0 and history["mil"].iloc[-1] < 0.1 * history["mil"].iloc[0]
    assert (history[["uncertainty", "bad"]] == 0).all(axis=None)
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    fresh = bags(seed=1)
    scores = teacher(tokens_of(fresh)).max(1).values  # k = 1
    assert (scores.argmax(1) == fresh.labels.argmax(1)).float().mean() > 0.9  # learnt, not learnt by heart


def test_teacher_learns_from_images_with_several_labels():
    """Two of three classes an image, each on one mask: which mask has which class is to be found out."""
    rng = np.random.default_rng(0)
    pairs = np.array([[0, 1], [1, 2], [2, 0]])[np.arange(90) % 3]
    tokens = rng.normal(0, 1, (90, MASKS, DIM))
    places = rng.permuted(np.tile(np.arange(MASKS), (90, 1)), axis=1)[:, :2]  # of the two masks
    for column in (0, 1):
        tokens[np.arange(90), places[:, column]] += 6 * np.eye(CLASSES, DIM)[pairs[:, column]]
    teacher, _ = train(in_memory(tokens.astype(np.float16), torch.eye(CLASSES)[pairs].sum(1)), HEAD, seed=0)
    alone = rng.normal(0, 1, (CLASSES, 20, DIM)) + 6 * np.eye(CLASSES, DIM)[:, None]
    named = teacher(torch.from_numpy(alone).float()).argmax(-1)  # (C, 20)
    assert (named == torch.arange(CLASSES)[:, None]).float().mean() > 0.9


def test_seed_decides_everything():
    one, history = train(bags(), SHORT, seed=3)
    torch.rand(7)  # what was drawn before does not matter
    again, same = train(bags(), SHORT, seed=3)
    other, _ = train(bags(), SHORT, seed=4)
    assert weights_equal(one, again) and history.equals(same)
    assert not weights_equal(one, other)


def test_history_counts_every_image_once_and_any_of_its_labels():
    # 5 images in batches of 2, 2, 1; every class is on every image, so every answer is right: 1 only if the
    # smaller batch has the smaller weight
    some = bags(5)
    everything = Bags(some.tokens, some.images, torch.ones_like(some.labels))
    _, history = train(everything, HeadConfig(widths=(4, 4, 4), epochs=2, batch_size=2), seed=0)
    np.testing.assert_allclose(history["accuracy"], 1)
    _, history = train(everything, HeadConfig(widths=(4, 4, 4), epochs=1, batch_size=2), 0, constant_teacher(3, 1),
                       DistillationConfig(lambda_mil=0, lambda_uncertainty=0))  # fmt: skip
    assert history["bad"].tolist() == [0.0]


def test_statistics_against_numpy():
    rng = np.random.default_rng(0)
    tokens = rng.normal(30, [0.01, 1, 5, 0], (7, 9, 4)).astype(np.float32)  # far from 0: squares cancel badly
    tokens[..., 3] = 2  # a feature that never changes must not divide by zero
    mean, std = statistics(in_memory(tokens, torch.zeros(7, 2)))
    flat = tokens.reshape(-1, 4).astype(np.float64)
    np.testing.assert_allclose(mean, flat.mean(0), rtol=1e-6)
    np.testing.assert_allclose(std[:3], flat.std(0)[:3], rtol=1e-4)
    assert std[3] == pytest.approx(1e-4) and mean.dtype == std.dtype == torch.float32


def test_trained_head_holds_the_statistics_of_its_images():
    some = bags()
    head, _ = train(some, SHORT.model_copy(update={"standardise": True}), seed=0)
    flat = tokens_of(some).double().reshape(-1, DIM).numpy()
    np.testing.assert_allclose(head.mean, flat.mean(0), atol=1e-6)
    np.testing.assert_allclose(head.std, flat.std(0), rtol=1e-5)


def test_tokens_that_do_not_fit_memory_are_read_again_each_time(monkeypatch):
    batches, tokens = [], tokens_of(bags()).numpy()

    def read(rows: np.ndarray) -> np.ndarray:
        batches.append(len(rows))
        return tokens[rows]

    def trained() -> MaskClassifier:
        some = Bags(read, np.arange(60), bags().labels)
        teacher, _ = train(some, SHORT, seed=0)
        return train(some, SHORT, 0, teacher, DistillationConfig())[0]

    resident, few = trained(), len(batches)
    monkeypatch.setattr(machine, "free_memory", lambda device: 1000)
    assert weights_equal(trained(), resident)
    assert len(batches) - few > few and max(batches[few:]) <= 60


def test_known_masks_are_learned_one_by_one():
    """In each image a mask of class 0 and one of class 1, both known, and a mask of class 2 known to be nothing."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(0, 1, (60, MASKS, DIM))
    places = rng.permuted(np.tile(np.arange(MASKS), (60, 1)), axis=1)[:, :CLASSES]
    known = torch.full((60, MASKS), -1)
    for j in range(CLASSES):
        tokens[np.arange(60), places[:, j]] += 6 * np.eye(CLASSES, DIM)[j]
        if j < 2:
            known[torch.arange(60), places[:, j]] = j
    some = in_memory(tokens.astype(np.float16), torch.tensor([[1.0, 1, 0]] * 60))
    some = dataclasses.replace(some, mask_labels=known)
    head, history = train(some, HEAD, 0, None, DistillationConfig())
    np.testing.assert_allclose(history["bad"], (MASKS - 2) / MASKS, rtol=1e-6)
    alone = torch.from_numpy(rng.normal(0, 1, (CLASSES, 20, DIM)) + 6 * np.eye(CLASSES, DIM)[:, None]).float()
    probability = head(alone).softmax(-1)
    assert (probability[:2].argmax(-1) == torch.arange(2)[:, None]).float().mean() > 0.9
    assert probability[:2].max(-1).values.mean() > 0.8 and probability[2].max(-1).values.mean() < 0.5


def test_student_learns_from_a_real_teacher():
    teacher, _ = train(bags(), HEAD, seed=0)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student, history = train(bags(), HEAD, 0, teacher, DistillationConfig())
    assert list(history.columns) == ["epoch", "mil", "uncertainty", "bad", "accuracy"]
    # of 8 masks one carries the class: the teacher is unsure or wrong on some of the others, right on that one
    bad = bad_masks(teacher(tokens_of(bags())), bags().labels, 0.5 * math.log(CLASSES)).float().mean().item()
    assert 0.05 < bad < 0.95
    np.testing.assert_allclose(history["bad"], bad, rtol=1e-5)
    assert (history["uncertainty"] > 0).all() and history["accuracy"].iloc[-1] > 0.95
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert entropy(student(tokens_of(bags()))).mean() > entropy(teacher(tokens_of(bags()))).mean()


def test_teacher_that_is_always_wrong_drives_the_student_to_no_idea():
    some = bags()
    labels = torch.cat([some.labels, torch.zeros(len(some.labels), 1)], 1)  # class 3 is on no image
    wrong = constant_teacher(4, 3)
    uniform = DistillationConfig(lambda_mil=0, lambda_uncertainty=1)
    student, history = train(Bags(some.tokens, some.images, labels), HEAD, 0, wrong, uniform)
    assert (history["bad"] == 1).all()
    assert history["uncertainty"].iloc[-1] == pytest.approx(4 * math.log(4), rel=5e-3)
    assert entropy(student(tokens_of(some))).min() > 0.95 * math.log(4)


def test_teacher_that_is_always_right_changes_nothing():
    same = Bags(bags().tokens, np.arange(60), torch.eye(CLASSES)[[2] * 60])
    student, history = train(same, SHORT, 0, constant_teacher(CLASSES, 2), DistillationConfig())
    alone, _ = train(same, SHORT, 0)
    assert (history["bad"] == 0).all() and (history["uncertainty"] == 0).all()
    assert weights_equal(student, alone)


def test_learning_rate_falls_evenly_to_its_end():
    one = train(bags(), SHORT.model_copy(update={"epochs": 1, "batch_size": 60}), seed=0)[0]
    falling = SHORT.model_copy(update={"epochs": 2, "batch_size": 60, "learning_rate_end": 0.0})
    assert weights_equal(train(bags(), falling, seed=0)[0], one)  # two steps, and the second has the rate 0
    constant = falling.model_copy(update={"learning_rate_end": 1.0})
    assert not weights_equal(train(bags(), constant, seed=0)[0], one)


def test_student_may_begin_with_weights_of_its_own():
    teacher, _ = train(bags(), SHORT, seed=0)
    same, own = (DistillationConfig(lambda_uncertainty=0, initial_weights=which) for which in ("teacher", "own"))
    assert weights_equal(train(bags(), SHORT, 0, teacher, same)[0], teacher)
    student = train(bags(), SHORT, 0, teacher, own)[0]
    assert not weights_equal(student, teacher) and weights_equal(train(bags(), SHORT, 0, teacher, own)[0], student)


def test_tokens_are_taken_as_they_are_without_standardisation():
    head, _ = train(bags(), SHORT, seed=0)
    assert torch.equal(head.mean, torch.zeros(DIM)) and torch.equal(head.std, torch.ones(DIM))


def test_bags_keep_the_order_of_images_and_number_classes_by_name():
    tokens = np.arange(5 * 2 * 3, dtype=np.float16).reshape(5, 2, 3)
    found = Bags.of(tokens.__getitem__, ["cow", "cat", "dog", "cat", "bird"], ("cat", "cow"))
    np.testing.assert_array_equal(tokens_of(found), tokens[[0, 1, 3]])
    np.testing.assert_array_equal(found[2], tokens[3])
    assert found.labels.tolist() == [[0, 1], [1, 0], [1, 0]]
    assert found[0].dtype == torch.float16 and found.labels.dtype == torch.float32


def test_bags_of_classes_that_gather_names_take_as_many_of_each_name():
    classes = ["cat", "cat", "cat", "dog", "car", "dog", "sky"]
    tokens = np.zeros((7, 2, 1024), np.float16)
    some = Bags.of(tokens.__getitem__, classes, {"animal": ["dog", "cat"], "vehicle": ["car"]}, per_name=2)
    assert some.images.tolist() == [0, 1, 3, 4, 5]
    assert some.labels.tolist() == [[1, 0], [1, 0], [1, 0], [0, 1], [1, 0]]


def test_bags_name_the_classes_without_images():
    with pytest.raises(UserError, match=r"no training image of sheep, zebra: run"):
        Bags.of(np.zeros((1, 2, 3), np.float16).__getitem__, ["cat"], ("zebra", "cat", "sheep"))


class LeakingBags(Bags):
    """A shuffling with a fault: every third image keeps its own label."""

    def shuffled(self, seed: int) -> Bags:
        labels = super().shuffled(seed).labels
        labels[::3] = self.labels[::3]
        return Bags(self.tokens, self.images, labels)


@pytest.mark.parametrize("kind", [Bags, LeakingBags])
def test_a_leak_is_caught_by_the_control_and_an_honest_shuffle_is_not(kind):
    """Trained on shuffled labels, a teacher names masks right by chance, once in C times; not if labels leak."""
    rng = np.random.default_rng(0)
    classes, masks, dim = 5, 8, 16
    directions = rng.normal(size=(classes, dim)).astype(np.float32)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        of = np.arange(count) % classes
        noise = rng.normal(size=(count, masks, dim)).astype(np.float32)
        return of, (3 * directions[of][:, None] + noise).astype(np.float16)

    of, tokens = draw(200)
    test_of, test_tokens = draw(100)
    plain = kind.of(tokens.__getitem__, [f"c{k}" for k in of], [f"c{k}" for k in range(classes)])
    config = HeadConfig(epochs=10, batch_size=16, widths=(32, 16, 16), precision="float32")
    counts = []
    for seed in range(8):
        teacher, _ = train(plain.shuffled(seed), config, seed)
        found = probabilities(teacher, test_tokens).argmax(-1)  # (images, masks)
        right = (found == test_of[:, None]).sum(1)
        counts.append(np.stack([right, np.full_like(right, masks)], 1))  # (images, 2)
    control = intervals.share(counts)
    assert (control.low > 1 / classes) == (kind is LeakingBags), control


def test_shuffled_labels_are_the_same_labels_elsewhere():
    some = bags()
    mixed = some.shuffled(0)
    assert torch.equal(tokens_of(mixed), tokens_of(some))
    assert torch.equal(mixed.labels.sum(0), some.labels.sum(0)) and (mixed.labels.sum(1) == 1).all()
    assert not torch.equal(mixed.labels, some.labels)
    assert torch.equal(mixed.labels, some.shuffled(0).labels)
    assert not torch.equal(mixed.labels, some.shuffled(1).labels)
