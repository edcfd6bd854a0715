"""A run's results as one page, `results/<profile>/index.html`, which needs no network and no other file.

nbconvert fills our template and renders Markdown, code and outputs. Left to itself, its page would load MathJax and
scripts from the network, link to files that are not there, and carry PNGs several times the size of our WebPs.
"""

import base64
import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from bs4 import BeautifulSoup
from math_core import LatexError, LatexToMathML
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from PIL import Image
from pygments.formatters import HtmlFormatter
from traitlets.config import Config

from usam import paths
from usam.errors import UserError
from usam.files import read_csv, write_atomically
from usam.profiles import Profile
from usam.report import tables

# The first of these that an output has is shown; nbconvert's own list starts with widgets and scripts.
OUTPUTS = ["text/html", "text/markdown", "image/png", "image/jpeg", "text/plain"]
NUMBER = re.compile(r"[-+]?[\d,]+(\.\d+)?( ± [\d.]+)?|\[[-\d.]+, [-\d.]+\]|–|not run|undefined")
MATH = LatexToMathML(macros={"substack": r"\begin{subarray}{c}#1\end{subarray}"}, fancy_error=False)


def build(profile: Profile) -> Path:
    """Write the page of the profile's results folder, and return its path; the same results give the same bytes.

    Raises:
        UserError: there is no executed notebook yet, or a file cannot be read.
    """
    folder = paths.results(profile.name)
    notebooks = sorted(p for p in folder.glob("notebooks/[0-9][0-9]_*.ipynb") if ".partial" not in p.suffixes)
    if not notebooks:
        raise UserError(f"{folder} has no executed notebooks: run ./run_all.sh --profile {profile.name} first")
    exporter = _exporter(folder, [p.stem for p in notebooks])
    shown = {p.stem: _table(p, profile) for p in sorted(folder.glob("tables/*.csv"))}
    costs = tables.read_costs(profile)
    page = exporter.environment.get_template("index.html.j2").render(
        profile=profile,
        facts=_facts(profile, costs),
        claims=shown.pop("claims", None),
        tables=[table for name, table in shown.items() if name.startswith("table_")],
        others=[table for name, table in shown.items() if not name.startswith("table_")],
        figures=[_figure(p) for p in sorted(folder.glob("figures/figure_*.png"))],
        cost=_cost(costs),
        notebooks=[_notebook(p, exporter) for p in notebooks],
        code_style=_code_style(),
    )
    write_atomically(folder / "index.html", page)
    return folder / "index.html"


def _exporter(folder: Path, pages: Sequence[str]) -> HTMLExporter:
    """Return nbconvert's exporter with our template; links lead to `pages` (notebook names) or files of `folder`."""
    markdown = MarkdownWithMath(renderer=_Renderer(folder.resolve(), pages))
    return HTMLExporter(
        config=Config({"NbConvertBase": {"display_data_priority": OUTPUTS}}),
        extra_template_basedirs=[str(paths.PACKAGE / "report")],
        template_name="html_template",
        template_file="notebook.html.j2",
        filters={
            "markdown2html": markdown.render,
            "picture": lambda data, alt: picture(base64.b64decode(data), alt),
        },
    )


class _Renderer(IPythonRenderer):
    """nbconvert's Markdown, with MathML for MathJax, which needs the network, and without links that lead nowhere."""

    def __init__(self, folder: Path, pages: Sequence[str]):
        super().__init__(escape=False, exclude_anchor_links=True)
        self._folder, self._pages = folder, pages

    def heading(self, text: str, level: int, **attributes: Any) -> str:
        return super().heading(text, min(level + 2, 6), **attributes)  # the page itself has levels 1 to 3

    def inline_math(self, body: str) -> str:
        return mathml(body, block=False)

    def block_math(self, body: str) -> str:
        return mathml(body, block=True)

    def link(self, text: str, url: str, title: str | None = None) -> str:
        """Link to the web, to a notebook of the page or to a file of the results; the text alone otherwise."""
        file = (self._folder / "notebooks" / url.partition("#")[0]).resolve()
        if re.match("https?:|mailto:", url):
            return super().link(text, url, title)
        if file.suffix == ".ipynb" and file.stem in self._pages:
            return super().link(text, f"#{file.stem}", title)
        if file.is_file() and file.is_relative_to(self._folder):
            return super().link(text, file.relative_to(self._folder).as_posix(), title)
        return text


def mathml(latex: str, block: bool) -> str:
    r"""Convert LaTeX to MathML, with the number of `\tag{...}` to the right; show it as code if that fails."""
    tag = re.search(r"\\tag\{(.*?)\}", latex)
    try:
        formula = MATH.convert_with_local_state(latex.replace(tag[0], "") if tag else latex, displaystyle=block)
    except LatexError:
        return f"<code>{escape(latex)}</code>"
    number = f"<span>({escape(tag[1])})</span>" if tag else ""
    return f'<span class="equation">{formula}{number}</span>' if block else formula


def picture(data: bytes, alt: str) -> str:
    """Return an image file as an `<img>` that carries it as WebP, lossless where that is smaller (diagrams)."""
    image, files = Image.open(io.BytesIO(data)).convert("RGBA"), []
    for options in ({"quality": 85}, {"lossless": True}):
        image.save(file := io.BytesIO(), "WEBP", **options)
        files.append(file.getvalue())
    content = base64.b64encode(min(files, key=len)).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="data:image/webp;base64,{content}" alt="{escape(alt)}" {size}>'


def _notebook(file: Path, exporter: HTMLExporter) -> dict[str, str]:
    try:
        notebook = nbformat.read(file, as_version=4)
    except (ValueError, OSError, AttributeError) as error:  # nbformat raises these for other JSON
        raise UserError(f"{file} cannot be read ({error}): delete it and run again") from error
    title, _, notebook.cells[0].source = notebook.cells[0].source.partition("\n")  # the page itself shows the title
    return {"name": file.stem, "title": title.strip("# "), "body": _tidy(exporter.from_notebook_node(notebook)[0])}


def _tidy(html: str) -> str:
    """Remove styles and scripts; give tables a box to scroll in, scopes of headers, and numbers on the right."""
    soup = BeautifulSoup(html, "html.parser")
    for element in soup(["style", "script"]):
        element.decompose()
    for table in soup("table"):
        table.wrap(soup.new_tag("div", attrs={"class": "scroll"}))
        for element in (table, *table(["thead", "tbody", "tr", "th", "td"])):
            element.attrs = {k: v for k, v in element.attrs.items() if k in {"colspan", "rowspan"}}
        for head in table("th"):
            head["scope"] = "row" if head.find_parent("tbody") else "col"
        for column in zip(*(row(["th", "td"]) for row in table("tr")), strict=False):
            if all(NUMBER.fullmatch(cell.get_text(strip=True)) for cell in column if cell.find_parent("tbody")):
                for cell in column:
                    cell["class"] = "number"
    return str(soup)


def _facts(profile: Profile, costs: pd.DataFrame) -> dict[str, str]:
    """Return what, where and when was run."""
    facts = {"World": profile.world, "Profile": profile.name, "Seeds": ", ".join(map(str, profile.seeds))}
    facts |= {name.capitalize(): " / ".join(costs[name].unique()) for name in ("commit", "hardware", "versions")}
    return facts | {"When": " to ".join(dict.fromkeys([costs["when"].min(), costs["when"].max()])).replace("T", " ")}


def _cost(costs: pd.DataFrame) -> str:
    """Return a table of the cost of each notebook and their total."""
    rows = costs[["notebook", "seconds", "peak_gib", "when"]]
    rows.loc[len(rows)] = ["total", rows["seconds"].sum(), rows["peak_gib"].max(), ""]
    rows = rows.rename(columns={"peak_gib": "peak memory [GiB]"})
    formats = ["{}".format, "{:.0f}".format, "{:.1f}".format, lambda when: when.replace("T", " ")]
    return _tidy(rows.to_html(index=False, formatters=formats))


def _table(file: Path, profile: Profile) -> dict[str, str]:
    """Read a table of the run; its caption is the bold first line of the .md file beside it."""
    about = file.with_suffix(".md")
    caption = re.match(r"\*\*(.+)\*\*", about.read_text(encoding="utf-8") if about.exists() else "")
    title, _, origin = (caption[1] if caption else file.stem).partition(f" ({profile.world}")
    values = read_csv(file, dtype=str, keep_default_na=False)
    with pd.option_context("display.max_colwidth", None):  # otherwise a cell ends after 50 characters
        body = _tidy(values.to_html(index=False))
    return {"name": file.stem, "title": title, "origin": profile.world + origin.removesuffix(")"), "body": body}


def _figure(file: Path) -> dict[str, str]:
    """Read a figure of the run; the first sentence of its PNG text "Description" is its caption."""
    try:
        with Image.open(file) as image:
            description = image.info.get("Description", file.name)
        body = picture(file.read_bytes(), description)
    except OSError as error:  # Pillow's own errors are OSErrors
        raise UserError(f"{file} cannot be read ({error}): delete it and run again") from error
    return {"name": file.stem, "title": re.split(r"(?<=\.)\s", description, maxsplit=1)[0], "body": body}


def _code_style() -> str:
    """Return the colours of code for light and for dark screens, as CSS."""
    light, dark = (HtmlFormatter(style=name).get_style_defs(".highlight") for name in ("default", "github-dark"))
    return f"{light}\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}"
