"""Rows of runs.csv: one per evaluation or other measured number."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from usam.files import locked, read_csv, write_atomically
from usam.machine import provenance
from usam.pipeline.cache import plain

SAME = ["profile", "dataset", "split", "source", "method", "seed", "parameters", "state"]


def record(file: Path, *rows: Mapping[str, Any]) -> None:
    """Write runs with their provenance into `file` (runs.csv), in place of earlier rows of the same runs.

    Two rows are the same run when all of `SAME` agree (see `scoring.state`). A row that brings its own provenance keeps
    it.
    """
    rows = [_with_provenance(row) for row in rows]
    new = pd.DataFrame(rows, dtype=object)  # a seed stays a whole number beside none
    with locked(file):
        if file.exists():
            old = read_csv(file, dtype=str, keep_default_na=False)  # as it stands: no rounding, no 1 -> 1.0
            keys = {tuple("" if row.get(k) is None else str(row[k]) for k in SAME) for row in rows}
            known = old.reindex(columns=SAME, fill_value="").apply(tuple, axis=1).isin(keys)
            new = pd.concat([old[~known], new], ignore_index=True)
        write_atomically(file, new.to_csv(index=False))


def _with_provenance(row: Mapping[str, Any]) -> dict[str, Any]:
    row = {**row, "parameters": json.dumps(row.get("parameters", {}), sort_keys=True, default=plain)}
    return row if "commit" in row else provenance() | row
