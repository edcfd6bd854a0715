"""A data set whose classes are gathered into others (paper 4, "Changed Granularity")."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from usam.data.datasets import VOID, Dataset, Example
from usam.errors import UserError


class Grouped:
    """A data set whose classes are the names in `groups`; classes in no group are background.

    Args:
        dataset: with its own classes.
        groups: a new name -> names of `dataset`, each in one group.

    Raises:
        UserError: a name that the data set does not have, or that two groups claim.
    """

    def __init__(self, dataset: Dataset, groups: Mapping[str, Sequence[str]]) -> None:
        members = [name for group in groups.values() for name in group]
        for name in members:
            if name not in dataset.class_names:
                raise UserError(f"groups: {dataset.name} has no class '{name}': {', '.join(dataset.class_names)}")
            if members.count(name) > 1:
                raise UserError(f"groups: '{name}' is claimed twice: put each class into one group")
        self._dataset = dataset
        self.name = f"{dataset.name}_grouped"
        self.class_names = tuple(groups)
        self.category_ids = tuple(range(1, len(groups) + 1))
        self.image_ids, self.image = dataset.image_ids, dataset.image
        self.files, self.truth_files = dataset.files, dataset.truth_files
        label_of = {name: label for label, group in enumerate(groups.values()) for name in group}
        self._labels = [label_of.get(name) for name in dataset.class_names]  # old label -> new label or None
        self._values = np.zeros(256, np.uint8)  # old value of a semantic map -> new value
        self._values[VOID] = VOID
        self._values[1 : len(self._labels) + 1] = [0 if label is None else label + 1 for label in self._labels]

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, i: int) -> Example:
        """Example `i` with the groups' labels."""
        example = self._dataset[i]
        ours = [(one, self._labels[one.label]) for one in example.instances]
        instances = [replace(one, label=label) for one, label in ours if label is not None]
        return replace(example, semantic=self._values[example.semantic], instances=instances)
