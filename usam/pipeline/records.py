"""Rows of runs.csv: one a training and evaluation."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from usam.files import locked, read_csv, write_atomically
from usam.machine import provenance
from usam.pipeline.cache import plain


def record(file: Path, **row: Any) -> None:
    """Write one run with its provenance into `file` (runs.csv), in place of an earlier row of the same run.

    Two rows are the same run when all of profile, dataset, source, method, split, seed, parameters and state (see
    `scoring.state`) agree. A `row` that brings its own provenance keeps it.
    """
    same = ["profile", "dataset", "split", "source", "method", "seed", "parameters", "state"]
    row = {**row, "parameters": json.dumps(row.get("parameters", {}), sort_keys=True, default=plain)}
    row = provenance() | row if "commit" not in row else row
    new = pd.DataFrame([row])
    with locked(file):
        if file.exists():
            old = read_csv(file, dtype=str, keep_default_na=False)  # as it stands: no rounding, no 1 -> 1.0
            key = ["" if row.get(k) is None else str(row[k]) for k in same]
            known = (old.reindex(columns=same, fill_value="") == key).all(axis=1)
            new = pd.concat([old[~known], new], ignore_index=True)
        write_atomically(file, new.to_csv(index=False))
