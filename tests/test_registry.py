"""What CONTRIBUTING says about adding a data set and a method, followed with toys (a source: tests/test_sources.py)."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from usam import paths
from usam.config import DataConfig
from usam.data.datasets import Example, Instance
from usam.errors import UserError
from usam.method.inference import LabelledMasks
from usam.method.masks import masks_to_rle
from usam.pipeline import scoring, stages
from usam.pipeline.methods import Ready
from usam.profiles import Profile
from usam.registry import DATASET_READERS, METHODS, Registry


class Squares:
    """A data set whose images are files with a bright square on the left half: the object, of class 0."""

    category_ids = (1, 2)

    def __init__(self, root: Path, split: str, class_names: list[str] | None = None):
        self.name, self.class_names = f"squares_{split}", tuple(class_names or ("car", "dog"))
        self.files = sorted((root / split).glob("*.png"))
        self.image_ids, self.truth_files = [file.stem for file in self.files], []

    def __len__(self) -> int:
        return len(self.files)

    def image(self, i: int) -> np.ndarray:
        return np.array(Image.open(self.files[i]).convert("RGB"))

    def __getitem__(self, i: int) -> Example:
        image = self.image(i)
        bright = image[..., 0] > 128
        return Example(self.image_ids[i], image, bright.astype(np.uint8), [Instance(0, masks_to_rle(bright[None])[0])])


def left_half(profile: Profile, _dataset_name: str, _source: str, _seed: int | None) -> Ready:
    """A method that labels the left half of every image as class 0."""

    def annotate(example: Example, _embeddings: object) -> LabelledMasks:
        mask = np.zeros((1, *example.semantic.shape), bool)
        mask[:, :, : mask.shape[2] // 2] = True
        return LabelledMasks(np.array([0]), np.array([0]), np.array([1.0], np.float32), mask)

    return Ready(annotate)


def test_a_toy_data_set_and_a_toy_method_are_scored(tiny: Profile, tmp_path, monkeypatch):
    monkeypatch.setenv("USAM_RESULTS", str(tmp_path / "results"))
    monkeypatch.setitem(DATASET_READERS, "squares", f"{__name__}:Squares")
    monkeypatch.setitem(METHODS, "left half", f"{__name__}:left_half")
    folder = paths.data() / "squares" / "test"
    folder.mkdir(parents=True)
    for k in range(2):
        picture = np.zeros((64, 64, 3), np.uint8)
        picture[:, :32] = 255
        Image.fromarray(picture).save(folder / f"{k}.png")
    squares = DataConfig(format="squares", root="squares", split="test")
    profile = tiny.model_copy(update={"datasets": {"toys": squares}})
    assert stages.class_names(profile, "toys") == ["car", "dog"]
    scores = scoring.score(profile, "toys", "none", None, "left half")
    assert (scores.miou, scores.map50) == (1.0, 1.0)
    row = pd.read_csv(paths.results("smoke") / "runs.csv").iloc[0]
    assert (row["dataset"], row["method"], row["miou"]) == ("toys", "left half", 1.0)


def test_the_code_of_an_added_method_is_part_of_the_key(tiny: Profile, monkeypatch):
    before = scoring.state(tiny)
    monkeypatch.setitem(METHODS, "left half", f"{__name__}:left_half")
    assert scoring.state(tiny) != before


def test_a_part_may_be_named_as_module_and_name():
    assert DATASET_READERS.find("usam.data.voc:VocDataset") is DATASET_READERS.find("voc")


def test_unknown_parts_are_one_clear_line():
    registry = Registry("kind of thing", {"one": "nowhere:One", "two": "nowhere:Two"})
    for name, message in (
        ("three", r"no kind of thing 'three': choose from one, two, or name your own as module:name"),
        ("one", r"'nowhere:One' cannot be imported as module:name .*: correct it in the profile"),
        ("nowhere:Three", r"'nowhere:Three' cannot be imported as module:name"),
    ):
        with pytest.raises(UserError, match=message) as error:
            registry.find(name)
        assert "\n" not in str(error.value)
