"""The page of a run, read as a browser reads it, of a small results folder that is made here."""

import base64
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image, PngImagePlugin

from usam import paths, profiles
from usam.errors import UserError
from usam.profiles import Profile
from usam.report import html_report

FORMULA = r"$$s_i^j = \max_{\substack{l \le k}} o_l \tag{1}$$"


class Page(HTMLParser):
    """The elements of a page, each with its attributes, and its text."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


def png(noise: bool = True, **text: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3)) if noise else np.full((40, 60, 3), 200)
    information = PngImagePlugin.PngInfo()
    for key, value in text.items():
        information.add_text(key, value)
    Image.fromarray(pixels.astype(np.uint8)).save(file := io.BytesIO(), "PNG", pnginfo=information)
    return file.getvalue()


def shown(alt: str | None = None) -> nbformat.NotebookNode:
    metadata = {"image/png": {"alt": alt}} if alt else {}
    data = {"image/png": base64.b64encode(png(noise=False)).decode(), "text/plain": "<Figure>"}
    return nbformat.v4.new_output("display_data", data=data, metadata=metadata)


def write(folder: Path, name: str, *cells: nbformat.NotebookNode) -> None:
    (folder / "notebooks").mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), folder / "notebooks" / f"{name}.ipynb")


@pytest.fixture
def smoke(tmp_path, monkeypatch) -> Profile:
    monkeypatch.setenv("USAM_RESULTS", str(tmp_path))
    return profiles.load("smoke")


@pytest.fixture
def folder(tmp_path, smoke) -> Path:
    """Two notebooks, three tables, one figure, and what the run cost."""
    markdown, code, output = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell, nbformat.v4.new_output
    folder = tmp_path / "smoke"
    table = '<table id="T_1"><thead><tr><th>n</th></tr></thead><tbody><tr><td>4</td></tr></tbody></table>'
    html = {"text/html": f"<script>alert(1)</script>{table}", "application/javascript": "alert(2)"}
    links = "[data](../runs.csv), [next](01_b.ipynb), [other](09_c.ipynb), [code](../../head.py), [out](../../out.txt)"
    (tmp_path / "out.txt").write_text("beside the results")
    outputs = [
        output("stream", name="stderr", text="100%|######| 7/7"),
        output("stream", name="stdout", text="seven <images>"),
        output("display_data", data=html),
        shown(),
        shown("seven bars"),
    ]
    first = markdown(f"# 00 A & B\n\n$x_i$ is meant\n\n{FORMULA}\n\n## What it is\n\n{links}")
    write(folder, "00_a", first, code("print(7)", outputs=outputs))
    write(folder, "01_b", markdown("# 01 B\n\n[back](00_a.ipynb)"))
    write(folder, "01_b.partial", markdown("# half a notebook"))
    for name in ("claims", "table_1", "seen"):
        (folder / "tables").mkdir(exist_ok=True)
        pd.DataFrame({"method": ["U-SAM " + 60 * "x"], "mIoU": ["1.00 ± 0.10"]}).to_csv(
            folder / f"tables/{name}.csv", index=False
        )
    caption = f"**Table 1, a < b ({smoke.world}; profile smoke, CPU (two))**\n\n| | |\n"
    (folder / "tables" / "table_1.md").write_text(caption, encoding="utf-8")
    (folder / "figures").mkdir()
    (folder / "figures" / "figure_3.png").write_bytes(png(Description='Four "scenes". A dog on grass.'))
    row = {"commit": "1234567e8901", "hardware": "CPU", "versions": "python 3", "when": "2026-01-02T03:04:05"}
    pd.DataFrame([{"seed": 0, **row}]).to_csv(folder / "runs.csv", index=False)
    costs = (("00_a", 1.5), ("01_b", 0.5))
    cost = [{"notebook": name, "seconds": 40.0, "peak_gib": peak, **row} for name, peak in costs]
    pd.DataFrame(cost).to_csv(folder / "notebooks.csv", index=False)
    return folder


def read(profile: Profile) -> Page:
    return Page(html_report.build(profile).read_text(encoding="utf-8"))


def test_page_needs_nothing_and_all_its_links_work(folder, smoke):
    html = read(smoke)
    sources = [element.get("src") for element in html.all("img", "script", "iframe", "source")]
    assert len(sources) == 3 and all(source.startswith("data:image/webp;base64,") for source in sources)
    assert not html.all("link", "script") and "@import" not in html.text and "url(" not in html.text
    ids = [attributes["id"] for _, attributes in html.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for attributes in html.all("a")]
    inside = {link[1:] for link in links if link.startswith("#")}
    assert inside <= set(ids) and {"00_a", "01_b", "contents", "tables", "figures"} <= inside
    files = [link for link in links if not link.startswith("#")]
    assert "tables/table_1.csv" in files and "runs.csv" in files and "figures/figure_3.png" in files
    assert all((folder / file).is_file() and ".." not in file for file in files)
    assert str(folder.parent) not in (folder / "index.html").read_text(encoding="utf-8")


def test_notebooks_are_shown_without_progress_bars_and_scripts(folder, smoke):
    html = read(smoke)
    assert "seven <images>" in html.text and "00 A & B" in html.text and "half a notebook" not in html.text
    assert "7/7" not in html.text and "alert" not in html.text
    assert "data, next, other, code, out" in html.text  # links to files outside of the results are text
    alts = [element["alt"] for element in html.all("img")]
    assert alts == ['Four "scenes". A dog on grass.', "Figure", "seven bars"]


def test_formulas_are_mathml_with_their_numbers(folder, smoke):
    html = read(smoke)
    assert [attributes.get("display") for attributes in html.all("math")] == [None, "block"]
    assert "(1)" in html.text and "$" not in html.text and "\\" not in html.text
    assert html_report.mathml(r"\nonsense{a<b}", block=False) == r"<code>\nonsense{a&lt;b}</code>"


def test_every_formula_of_our_notebooks_can_be_converted():
    found = []
    for file in sorted(paths.NOTEBOOKS.glob("*.ipynb")):
        texts = [cell.source for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "markdown"]
        found += re.findall(r"\$\$.+?\$\$|\$.+?\$", "\n".join(texts), re.DOTALL)
    assert len(found) > 50
    assert [f for f in found if "<code>" in html_report.mathml(f.strip("$"), block=f.startswith("$$"))] == []


def test_tables_have_headers_captions_and_a_total(folder, smoke):
    html = read(smoke)
    assert html.all("th") and {head["scope"] for head in html.all("th")} == {"col"}
    assert html.text.count("U-SAM " + 60 * "x") == 3
    assert "Table 1, a < b" in html.text and f"{smoke.world}; profile smoke, CPU (two) ·" in html.text
    assert re.search(r"total\s+80\s+1\.5\s", html.text)
    assert "1234567e8901" in html.text and "2026-01-02 03:04:05" in html.text


def test_same_results_give_the_same_bytes_even_if_some_are_missing(folder, smoke):
    first = html_report.build(smoke).read_bytes()
    assert html_report.build(smoke).read_bytes() == first
    for part in ("tables", "figures"):
        shutil.rmtree(folder / part)
    assert {"tables", "figures"}.isdisjoint(element.get("id") for _, element in read(smoke).elements)


def test_images_have_their_size_and_exact_pixels_where_that_is_small():
    (element,) = Page(html_report.picture(png(noise=False), 'a "b"')).all("img")
    image = Image.open(io.BytesIO(base64.b64decode(element["src"].partition(",")[2])))
    assert (element["alt"], element["width"], element["height"]) == ('a "b"', "60", "40")
    assert image.format == "WEBP" and image.size == (60, 40) and image.getpixel((30, 20)) == (200, 200, 200)


def test_missing_results_name_the_command_to_run(folder, smoke):
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=r"smoke has no executed notebooks: run \./run_all\.sh --profile smoke first"):
        html_report.build(smoke)


def test_damaged_files_are_errors_of_one_line(folder, smoke):
    (folder / "notebooks" / "01_b.ipynb").write_text("[]")
    with pytest.raises(UserError, match=r"01_b\.ipynb cannot be read .*: delete it and run again"):
        html_report.build(smoke)
    (folder / "figures" / "figure_3.png").write_bytes(png()[:100])
    with pytest.raises(UserError, match=r"figure_3\.png cannot be read .*: delete it and run again"):
        html_report.build(smoke)
    (folder / "notebooks.csv").write_text("notebook,seconds\n")
    with pytest.raises(UserError, match=r"notebooks\.csv cannot be read"):
        html_report.build(smoke)
