"""The README says what the committed results say."""

import re

import pandas as pd

from usam import paths

README = (paths.ROOT / "README.md").read_text(encoding="utf-8")
TABLES = paths.ROOT / "results" / "mini" / "tables"


def test_scores_are_those_of_the_committed_tables():
    for name, data_set in (("table_1", "VOC"), ("table_2", "COCO")):
        ours = pd.read_csv(TABLES / f"{name}.csv", dtype=str).query("method == 'U-SAM'")
        for row in ours.to_dict("records"):
            said = [row[f"{score} {where}"] for score in ("mIoU", "mAP50") for where in ("paper", "here")]
            assert f"| {data_set} | {row['training images']} | {' | '.join(said)} |" in README


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 8
    assert [link for link in links if not link.startswith("http") and not (paths.ROOT / link).exists()] == []
