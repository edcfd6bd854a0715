"""Keys of stored results: all that decides a result is in its key, and nothing that does not."""

import shutil
from pathlib import Path

import pytest

from usam import paths
from usam.pipeline import cache, scoring, stages
from usam.profiles import Profile


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A copy of the package's sources, which the keys are computed from."""
    copy = tmp_path / "package"
    shutil.copytree(paths.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(paths, "PACKAGE", copy)
    return copy


def edit(file: Path, text: str = "CHANGED = True\n") -> None:
    file.write_text(file.read_text() + f"\n\n{text}")


@pytest.mark.parametrize(
    "module",
    [
        "pipeline/sweeps.py",  # the way "others" of the settings beyond the paper
        "machine.py",  # how everything is seeded
        "method/training.py",
        "method/fast.py",
        "data/coco.py",
        "evaluation/scores.py",
        "baselines/sam_clip.py",
        "pipeline/stages.py",
    ],
)
def test_scores_depend_on_the_code_of_every_folder_that_decides_them(tiny: Profile, package, module):
    before = scoring.state(tiny)
    edit(package / module)
    assert scoring.state(tiny) != before


@pytest.mark.parametrize("module", ["report/figures.py", "annotation/viewer.py", "cli.py"])
def test_scores_do_not_depend_on_what_shows_them(tiny: Profile, package, module):
    before = scoring.state(tiny)
    edit(package / module)
    assert scoring.state(tiny) == before


def test_scores_do_not_depend_on_comments(tiny: Profile, package):
    before = scoring.state(tiny)
    edit(package / "method" / "head.py", "# a remark\n")
    assert scoring.state(tiny) == before


def test_a_head_depends_on_how_it_is_seeded(package):
    before = cache.key("head", stages.CODE)
    file = package / "machine.py"
    changed = file.read_text().replace("torch.manual_seed(seed)", "torch.manual_seed(seed + 1)")
    assert changed != file.read_text()
    file.write_text(changed)
    assert cache.key("head", stages.CODE) != before


def test_other_names_that_are_crawled_later_do_not_change_the_scores_of_a_profile(tiny: Profile):
    stages.training_images(tiny, "web")
    before = scoring.state(tiny)
    stages.training_images(tiny, "web", ["horse", "pizza"])
    assert scoring.state(tiny) == before
