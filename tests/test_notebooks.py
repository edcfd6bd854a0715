"""The notebooks as users run them: all of them at `smoke` through the runner, and what each must be like on disk."""

import ast
import re

import nbformat
import pandas as pd
import pytest

from usam import paths, run
from usam.clip_baseline import VIEWS

NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Results of `./run_all.sh --profile smoke` in a folder whose name has a space, and what a second run said."""
    folder = tmp_path_factory.mktemp("a smoke run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("USAM_DATA", str(folder / "data"))
        patch.setenv("USAM_RESULTS", str(folder / "results"))
        assert run.main(["--profile", "smoke"]) == 0
        executed = {p.name: p.stat().st_mtime_ns for p in (folder / "results/smoke/notebooks").iterdir()}
        assert run.main(["--profile", "smoke"]) == 0
    again = {p.name: p.stat().st_mtime_ns for p in (folder / "results/smoke/notebooks").iterdir()}
    assert again == executed  # the second run reused every notebook
    return folder / "results" / "smoke"


def code(notebook) -> list[str]:
    """Sources of the code cells, IPython magics left out."""
    cells = nbformat.read(notebook, as_version=4).cells
    return [re.sub(r"^\s*[%!].*$", "", c.source, flags=re.M) for c in cells if c.cell_type == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_is_committed_without_outputs_and_in_short_cells(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    assert not [c for c in cells if c.cell_type == "code" and (c.outputs or c.execution_count)]
    assert [i for i, c in enumerate(cells) if "parameters" in c.metadata.get("tags", [])]
    assert max(len(source.splitlines()) for source in code(notebook)) <= 30


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_parameter_is_read(notebook):
    cells = nbformat.read(notebook, as_version=4).cells
    (parameters,) = [c.source for c in cells if "parameters" in c.metadata.get("tags", [])]
    assigned = {t.id for node in ast.parse(parameters).body for t in node.targets}
    assert {"profile", "seed"} <= assigned
    others = [ast.parse(source) for source in code(notebook) if source != parameters]
    read = {n.id for tree in others for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    assert assigned <= read


def test_all_run_and_leave_tables_figures_and_rows(smoke):
    assert [p.name for p in sorted((smoke / "notebooks").iterdir())] == [p.name for p in NOTEBOOKS]
    tables = {"table_1", "table_2", "table_3_voc", "table_3_coco", "ceilings", "clip_views", "granularity"}
    assert {f"{name}.{ending}" for name in tables for ending in ("csv", "md")} <= {
        p.name for p in (smoke / "tables").iterdir()
    }
    for figure in ("figure_3.png", "figure_4.png"):
        assert (smoke / "figures" / figure).stat().st_size > 10_000


def test_rows_say_how_to_repeat_them(smoke):
    rows = pd.read_csv(smoke / "runs.csv")
    wanted = ["commit", "profile", "dataset", "source", "method", "state", "parameters", "versions", "hardware"]
    assert rows[[*wanted, "seconds", "peak_gib", "miou", "map50"]].notna().all(axis=None)
    untrained = {"our masks + true labels", *(view.method for view in VIEWS)}
    assert set(rows.loc[rows["seed"].isna(), "method"]) == untrained  # nothing trained, no seed
    assert rows["miou"].between(0, 1).all() and rows["map50"].between(0, 1).all()
    assert {"U-SAM", "MIL only", "shuffled labels"} <= set(rows["method"])
    same = rows[(rows["dataset"] == "voc") & (rows["split"] == "test") & (rows["source"] == "web")]
    assert sorted(same.loc[same["method"] == "U-SAM", "seed"]) == [0, 1]


def test_a_table_s_number_is_found_in_the_rows(smoke):
    """Table 1's mIoU of U-SAM on synthetic images is the mean of its rows in runs.csv, to the printed digit."""
    rows = pd.read_csv(smoke / "runs.csv").query("dataset == 'voc' and split == 'test' and source == 'synthetic'")
    expected = 100 * rows.loc[rows["method"] == "U-SAM", "miou"].mean()
    table = pd.read_csv(smoke / "tables" / "table_1.csv")
    printed = table.loc[(table["method"] == "U-SAM") & (table["training images"] == "synthetic"), "mIoU here"].item()
    assert printed.split(" ± ")[0] == f"{expected:.2f}"


def test_no_path_of_this_machine_and_no_warning_in_executed_notebooks(smoke):
    for file in (smoke / "notebooks").iterdir():
        content = file.read_text(encoding="utf-8")
        assert str(paths.ROOT) not in content and str(smoke) not in content
        assert "Traceback" not in content and '"name": "stderr"' not in re.sub(r"\s+", " ", _warnings_only(file))


def _warnings_only(file) -> str:
    """The stderr outputs that are not progress bars, as JSON-like text."""
    outputs = [o for c in nbformat.read(file, as_version=4).cells if c.cell_type == "code" for o in c.outputs]
    texts = [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    return "".join(f'"name": "stderr" {t}' for t in texts if "Warning" in t or "warning" in t)
