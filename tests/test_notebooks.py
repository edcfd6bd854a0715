"""The notebooks as users run them: all of them at `smoke` through the runner, and what each must be like on disk."""

import ast
import json
import re

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
from PIL import Image

from usam import cli, paths
from usam.pipeline.choice import CHOSEN
from usam.registry import METHODS
from usam.report import tables

NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
RIVALS = [name for name, place in METHODS.items() if place.startswith("usam.pipeline.rivals:")]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Results of `./run_all.sh --profile smoke` in a folder whose name has a space, and the output of a second run."""
    folder = tmp_path_factory.mktemp("a smoke run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("USAM_DATA", str(folder / "data"))
        patch.setenv("USAM_RESULTS", str(folder / "results"))
        assert cli.main(["--profile", "smoke"]) == 0
        executed = {p.name: p.stat().st_mtime_ns for p in (folder / "results/smoke/notebooks").iterdir()}
        assert cli.main(["--profile", "smoke"]) == 0
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


PAPER_TABLES = ("table_1", "table_2", "table_3_voc", "table_3_coco", "table_4_voc", "table_4_coco")


def test_all_run_and_leave_tables_figures_and_rows(smoke):
    assert [p.name for p in sorted((smoke / "notebooks").iterdir())] == [p.name for p in NOTEBOOKS]
    others = {
        "ceilings",
        "claims",
        "clip_views",
        "gains",
        "calibration",
        "sweeps",
        "search",
        "granularity",
        "beyond_the_paper",
        "rivals",
        "rivals_drop",
    }
    tables = {*PAPER_TABLES, *others}
    assert {f"{name}.{ending}" for name in tables for ending in ("csv", "md", "tex")} <= {
        p.name for p in (smoke / "tables").iterdir()
    }
    for figure in range(1, 5):
        for ending in ("png", "pdf"):
            assert (smoke / "figures" / f"figure_{figure}.{ending}").stat().st_size > 10_000
    assert pd.read_csv(smoke / "notebooks.csv")["notebook"].tolist() == [p.stem for p in NOTEBOOKS]


def test_rows_say_how_to_repeat_them(smoke):
    rows = pd.read_csv(smoke / "runs.csv")
    wanted = ["commit", "profile", "dataset", "source", "method", "state", "parameters", "versions", "hardware"]
    assert rows[wanted].notna().all(axis=None)
    numbers = rows[["miou", "ece", "whole", "tokens"]]
    assert (numbers.notna().sum(1) == 1).all()  # scores, or what a table shows beside scores
    scored = rows[rows["miou"].notna()]
    assert scored[["seconds", "peak_gib"]].notna().all(axis=None) and scored["miou"].between(0, 1).all()
    objects = ~scored["method"].isin(RIVALS)  # rivals label pixels and find no objects
    assert scored.loc[objects, "map50"].between(0, 1).all() and scored.loc[~objects, "map50"].isna().all()
    assert {"Leopart", "ACR, deployable names"} <= set(scored["method"])
    untrained = {"all background", "our masks + true labels", "SAM+CLIP", "SAM+CLIP" + CHOSEN}
    assert set(scored.loc[scored["seed"].isna(), "method"]) == untrained  # nothing trained, no seed
    assert {"U-SAM", "MIL only", "shuffled labels", "shuffled labels, teacher at threshold 0"} <= set(rows["method"])
    same = rows[(rows["dataset"] == "voc") & (rows["split"] == "test") & (rows["source"] == "web")]
    assert sorted(same.loc[same["method"] == "U-SAM", "seed"]) == [0, 1]


@pytest.mark.parametrize("name", PAPER_TABLES)
def test_every_number_of_a_table_is_found_in_the_rows(smoke, name):
    """Each mean and deviation of the paper's tables is that of its rows in runs.csv, to the printed digit."""
    dataset_name = "coco" if name in ("table_2", "table_3_coco", "table_4_coco") else "voc"
    rows = pd.read_csv(smoke / "runs.csv")
    rows = rows[(rows["dataset"] == dataset_name) & rows["split"].isin(["test", "val2017"])]
    table = pd.read_csv(smoke / "tables" / f"{name}.csv", dtype=str)
    here = table[table["seeds"] != "0"]
    assert table["method"].iloc[-1] == "all background" and here["method"].iloc[-1] == "all background"
    assert len(here) >= 2
    for line in here.to_dict("records"):
        same = rows[(rows["method"] == line["method"]) & (rows["source"] == line["training images"])]
        assert len(same) == int(line["seeds"]) and same["commit"].nunique() == 1
        for column, printed in (("miou", line["mIoU here"]), ("map50", line["mAP50 here"])):
            assert printed == tables.mean_sd(same[column])


def test_steps_wholes_and_calibration_are_found_in_the_rows(smoke):
    rows = pd.read_csv(smoke / "runs.csv")
    table = pd.read_csv(smoke / "tables" / "calibration.csv", dtype=str)
    for line in table.to_dict("records"):
        method = f"calibration of {line['head']}, {line['masks']} masks"
        same = rows[(rows["dataset"] == line["data set"]) & (rows["source"] == line["training images"])]
        same = same[same["method"] == method]
        assert line["ECE"] == tables.mean_sd(same["ece"])


def test_own_images_through_papermill(smoke, tmp_path):
    """As a user does: a folder, names, settings; the results of the run stay as they are."""
    rng = np.random.default_rng(0)
    (tmp_path / "my photos").mkdir()
    for name in ("one", "two"):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(tmp_path / "my photos" / f"{name}.png")
    before = {p: p.stat().st_mtime_ns for p in smoke.rglob("*")}
    parameters = {"images": str(tmp_path / "my photos"), "classes": "car, dog", "profile": "smoke"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("USAM_DATA", str(smoke.parent.parent / "data"))
        patch.setenv("USAM_RESULTS", str(smoke.parent))
        done = papermill.execute_notebook(
            paths.NOTEBOOKS / "10_your_images.ipynb",
            tmp_path / "out.ipynb",
            parameters | {"score_threshold": 0.0, "others": "sofa"},
            kernel_name="python3",
            progress_bar=False,
        )
        with pytest.raises(papermill.PapermillExecutionError) as caught:
            papermill.execute_notebook(
                paths.NOTEBOOKS / "10_your_images.ipynb",
                tmp_path / "failed.ipynb",
                parameters | {"classes": "car"},
                kernel_name="python3",
                progress_bar=False,
            )
    coco = json.loads((tmp_path / "my photos-labelled" / "annotations" / "instances.json").read_text())
    assert [one["name"] for one in coco["categories"]] == ["car", "dog"] and len(coco["images"]) == 2
    assert {p: p.stat().st_mtime_ns for p in smoke.rglob("*")} == before
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    assert any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in outputs)
    assert "one class alone" in str(caught.value) and "annotate.py" not in str(caught.value)  # no traceback


def test_widgets_leave_their_picture_in_executed_notebooks(smoke):
    content = nbformat.read(smoke / "notebooks" / "10_your_images.ipynb", as_version=4)
    kinds = [set(output.get("data", {})) for cell in content.cells for output in cell.get("outputs", [])]
    assert not any("application/vnd.jupyter.widget-view+json" in one for one in kinds)
    assert "widgets" not in content.metadata and "<svg" in str(content.cells)


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
