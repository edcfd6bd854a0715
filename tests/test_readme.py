"""The README reports what the committed results contain, and its links and those of its neighbours work."""

import io
import re
import subprocess

import pandas as pd
import pytest

from usam import paths
from usam.report import claims

README = (paths.ROOT / "README.md").read_text(encoding="utf-8")
TABLES_OF = {"1": "VOC", "2": "COCO", "3_voc": "VOC", "3_coco": "COCO", "4_voc": "VOC", "4_coco": "COCO"}
TABLES = paths.ROOT / "results" / "study" / "tables"


def committed(name: str) -> str:
    """A table as it is in the repository: a run on this machine may have written another one since."""
    place = f"HEAD:results/study/tables/{name}.csv"
    found = subprocess.run(["git", "-C", paths.ROOT, "show", place], capture_output=True, text=True)
    return found.stdout if found.returncode == 0 else (TABLES / f"{name}.csv").read_text(encoding="utf-8")


def test_scores_are_those_of_the_committed_tables():
    block = README.partition("<!-- tables of results/study -->")[2].partition("<!-- end of tables -->")[0]
    for name, data_set in ((f"table_{n}", w) for n, w in TABLES_OF.items()):
        ours = pd.read_csv(io.StringIO(committed(name)), dtype=str).query("seeds != '0'")
        assert len(ours) >= 2
        for row in ours.to_dict("records"):
            scores = [row[f"{score} {where}"] for score in ("mIoU", "mAP50") for where in ("paper", "here")]
            line = f"| {data_set} | {row['method']} | {row['training images']} | {' | '.join(scores)} |"
            # Table 4 repeats U-SAM, whose paper's numbers differ a little there; its line stands once
            assert line in block or (row["method"] == "U-SAM" and name.startswith("table_4"))


def test_sentences_about_the_claims_are_those_of_the_committed_table():
    block = README.partition("<!-- claims of results/study -->")[2].partition("<!-- end of claims -->")[0]
    table = pd.read_csv(io.StringIO(committed("claims")), dtype=str, keep_default_na=False)
    expected = [f"* {line}" for line in (claims.family(table), *claims.sentences(table))]
    said = [" ".join(item.split()) for item in re.split(r"\n(?=\* )", block.strip())]
    assert said == expected


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/performance.md", "docs/statistics.md"])
def test_links_lead_to_files_and_headings(page):
    folder, text = (paths.ROOT / page).parent, (paths.ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert len(links) > 40 or page != "README.md"
    for file, _, heading in (link.partition("#") for link in links):
        target = folder / file if file else paths.ROOT / page
        assert target.exists(), file
        assert not heading or heading in _anchors(target.read_text(encoding="utf-8"))


def _anchors(markdown: str) -> list[str]:
    """The headings as GitHub writes them in addresses."""
    titles = re.findall(r"^#+ (.+)$", markdown, flags=re.M)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
