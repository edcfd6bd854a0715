"""Every path, once. Nothing depends on the working directory."""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent
PROFILES = ROOT / "profiles"
NOTEBOOKS = ROOT / "notebooks"


def data() -> Path:
    """Where data sets, images and embeddings are kept: `$USAM_DATA`, else `data/` of the repository."""
    return resolve(os.environ.get("USAM_DATA") or "data").resolve()


def results(profile: str) -> Path:
    """Where a run leaves notebooks, tables, figures and runs.csv: below `$USAM_RESULTS`, else `results/`."""
    return resolve(os.environ.get("USAM_RESULTS") or "results").resolve() / profile


def resolve(path: str | Path) -> Path:
    """`path` as given if absolute, else relative to the repository's root."""
    return ROOT / Path(path).expanduser()  # an absolute path replaces the root
