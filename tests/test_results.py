"""The committed results: do they belong together, and to the code as it is now?"""

import json

import pandas as pd
import pytest

from usam import paths, profiles
from usam.pipeline import scoring
from usam.profiles import Profile

RESULTS = paths.ROOT / "results" / "study"
if not (RESULTS / "state.json").exists():
    pytest.skip(
        "results/study is of code that wrote no state.json: run ./run_all.sh --profile study and commit what it writes",
        allow_module_level=True,
    )
STATE = json.loads((RESULTS / "state.json").read_text())


@pytest.fixture
def study() -> Profile:
    """The profile of the committed results, with the arithmetic of the machine on which the results were made."""
    profile = profiles.load("study")
    for key in ("sam.precision", "clip.precision", "head.precision", "sources.synthetic.generate.precision"):
        profile = profile.changed({key: STATE["precision"]})
    return profile


def test_all_committed_tables_are_of_one_state():
    marks = {file.name: file.read_text(encoding="utf-8").rpartition("<!--")[2] for file in RESULTS.glob("tables/*.md")}
    assert len(marks) > 10 and len(set(marks.values())) == 1
    assert STATE["state"] in set(pd.read_csv(RESULTS / "runs.csv", dtype=str)["state"])


def test_committed_results_belong_to_the_code(study):
    if (now := scoring.code_state(study)) != STATE["code"]:
        pytest.skip(
            f"results/study is of other code, settings or weights ({STATE['code']}, now {now}): "
            "run ./run_all.sh --profile study and commit what it writes"
        )


def test_results_of_other_code_are_found_out(study, monkeypatch):
    other = study.changed({"head.a": study.head.a + 1})
    assert scoring.code_state(other) != scoring.code_state(study)
