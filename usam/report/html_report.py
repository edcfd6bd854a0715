"""A run's results as one page, `results/<profile>/index.html`: it carries its pictures and opens without network."""

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
from usam.config import Profile
from usam.errors import UserError
from usam.files import read_csv, write_atomically
from usam.report import tables

TABLES = ("table_1", "table_2", "table_3_voc", "table_3_coco", "table_4_voc", "table_4_coco")
FIGURES = ("figure_1", "figure_2", "figure_3", "figure_4")
# Of an output that comes in several kinds, the first of these is shown: no scripts, no widgets.
OUTPUTS = ["text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain"]
NUMBER = re.compile(r"[-+]?[\d,]+(\.\d+)?( ± [\d.]+)?|\[[-\d.]+, [-\d.]+\]|–|not run|undefined")
MATH = LatexToMathML(macros={"substack": r"\begin{subarray}{c}#1\end{subarray}"}, fancy_error=False)


def build(profile: Profile) -> Path:
    """Write the page of what lies in the profile's results folder; the same results give the same bytes.

    Raises:
        UserError: no executed notebook or no runs.csv yet, or a file that cannot be read.
    """
    folder = paths.results(profile.name)
    notebooks = sorted(p for p in folder.glob("notebooks/[0-9][0-9]_*.ipynb") if ".partial" not in p.suffixes)
    if not notebooks or tables.read_runs(profile).empty:
        missing = "rows in runs.csv" if notebooks else "executed notebooks"
        raise UserError(f"{folder} has no {missing}: run ./run_all.sh --profile {profile.name} first")
    exporter = _exporter(folder, [p.stem for p in notebooks])
    shown = [_table(p, profile) for p in sorted(folder.glob("tables/*.csv"))]
    named = {table["name"]: table for table in shown}
    page = exporter.environment.get_template("index.html.j2").render(
        profile=profile,
        facts=_facts(profile),
        claims=named.get("claims"),
        tables=[named[name] for name in TABLES if name in named],
        others=[table for table in shown if table["name"] not in {"claims", *TABLES}],
        figures=[_figure(p) for p in (folder / "figures" / f"{name}.png" for name in FIGURES) if p.exists()],
        cost=_cost(profile),
        notebooks=[_notebook(p, exporter) for p in notebooks],
        code_style=_code_style(),
    )
    write_atomically(folder / "index.html", page)
    return folder / "index.html"


def _exporter(folder: Path, pages: Sequence[str]) -> HTMLExporter:
    """nbconvert with our template: formulas are MathML, pictures WebP, links lead to `pages` or files of `folder`."""

    def markdown(source: str) -> str:
        return MarkdownWithMath(renderer=_Renderer(folder, pages)).render(source)

    return HTMLExporter(
        config=Config({"NbConvertBase": {"display_data_priority": OUTPUTS}}),
        extra_template_basedirs=[str(paths.PACKAGE / "report")],
        template_name="html_template",
        template_file="notebook.html.j2",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        filters={"markdown2html": markdown, "picture": lambda data, alt: picture(base64.b64decode(data), alt)},
    )


class _Renderer(IPythonRenderer):
    """nbconvert's Markdown, on a page of its own.

    Args:
        folder: the run's results.
        pages: names of the notebooks on the page.
    """

    def __init__(self, folder: Path, pages: Sequence[str]):
        super().__init__(escape=False, exclude_anchor_links=True)
        self._folder, self._pages = folder.resolve(), pages

    def heading(self, text: str, level: int, **attributes: Any) -> str:
        return super().heading(text, min(level + 2, 6), **attributes)  # the page's own are above

    def inline_math(self, body: str) -> str:
        return mathml(body, block=False)

    def block_math(self, body: str) -> str:
        return mathml(body, block=True)

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", block=True)

    def link(self, text: str, url: str, title: str | None = None) -> str:
        """A link that works, else its text alone."""
        name = Path(url.partition("#")[0])
        if name.suffix == ".ipynb":
            return super().link(text, f"#{name.stem}", title) if name.stem in self._pages else text
        if re.match("https?:|mailto:", url):
            return super().link(text, url, title)
        file = self._file(url)
        return super().link(text, file.relative_to(self._folder).as_posix(), title) if file else text

    def image(self, text: str, url: str, title: str | None = None) -> str:
        file = self._file(url)
        return picture(file.read_bytes(), text) if file else escape(text)

    def _file(self, url: str) -> Path | None:
        """The file of the run's results that `url` names, seen from the folder of the executed notebooks."""
        file = (self._folder / "notebooks" / url).resolve()
        return file if file.is_file() and file.is_relative_to(self._folder) else None


def mathml(latex: str, block: bool) -> str:
    r"""LaTeX as MathML, which browsers draw by themselves; `\tag{...}` stands to the right of the formula.

    What cannot be converted is shown as it is: a formula is no reason to have no page.
    """
    tag = re.search(r"\\tag\{(.*?)\}", latex) if block and r"\begin{align" not in latex else None
    plain = latex.replace(tag[0], "") if tag else latex
    try:
        formula = MATH.convert_with_local_state(plain, displaystyle=block)
    except LatexError:
        return f"<code>{escape(latex)}</code>"
    number = f"<span>({escape(tag[1])})</span>" if tag else ""
    return f'<span class="equation">{formula}{number}</span>' if block else formula


def picture(data: bytes, alt: str) -> str:
    """An image file as `<img>` with the picture inside: WebP, lossless where that is smaller (diagrams, mostly)."""
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    if image.getextrema()[3] == (255, 255):
        image = image.convert("RGB")  # nothing shines through
    kinds = []
    for options in ({"quality": 85}, {"lossless": True}):
        image.save(file := io.BytesIO(), "WEBP", **options)
        kinds.append(file.getvalue())
    content = base64.b64encode(min(kinds, key=len)).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="data:image/webp;base64,{content}" alt="{escape(alt)}" {size}>'


def _notebook(file: Path, exporter: HTMLExporter) -> dict[str, str]:
    try:
        notebook = nbformat.read(file, as_version=4)
    except (ValueError, OSError, AttributeError) as error:  # what nbformat raises for other people's JSON
        raise UserError(f"{file} cannot be read ({error}): delete it and run again") from error
    title = file.stem
    if first := re.match(r"# +(.+)\n*", notebook.cells[0].source if notebook.cells else ""):
        title = first[1].strip()
        notebook.cells[0].source = notebook.cells[0].source[first.end() :]  # the page writes it
    section = title
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            section = (re.findall(r"^#+ +(.+)$", cell.source, re.MULTILINE) or [section])[-1]
        cell.metadata.setdefault("alt", f"Figure in section '{section}'")
    return {"name": file.stem, "title": title, "body": _tidy(exporter.from_notebook_node(notebook)[0])}


def _tidy(html: str) -> str:
    """Every table as those of the page: a box to scroll in, headers that say of what, numbers to the right."""
    soup = BeautifulSoup(html, "html.parser")
    for element in soup(["style", "script"]):
        element.decompose()
    for table in soup("table"):
        table.wrap(soup.new_tag("div", attrs={"class": "scroll"}))
        for element in (table, *table(["thead", "tbody", "tr", "th", "td"])):
            element.attrs = {k: v for k, v in element.attrs.items() if k in {"colspan", "rowspan"}}
        for head in table("th"):
            head["scope"] = "row" if head.find_parent("tbody") else "col"
            if not head.get_text(strip=True):
                head.name, head.attrs = "td", {}  # a corner heads nothing
        for column in zip(*(row(["th", "td"]) for row in table("tr")), strict=False):
            if all(NUMBER.fullmatch(cell.get_text(strip=True)) for cell in column if cell.find_parent("tbody")):
                for cell in column:
                    cell["class"] = "number"
    return str(soup)


def _facts(profile: Profile) -> dict[str, str]:
    """What the whole page is of: from notebooks.csv, else from the rows of runs.csv that have the last row's commit."""
    file = paths.results(profile.name) / "notebooks.csv"
    rows = tables.read_costs(profile) if file.exists() else tables.read_runs(profile).query("commit == commit.iloc[-1]")
    facts = {"World": profile.world, "Profile": profile.name, "Seeds": ", ".join(map(str, profile.seeds))}
    facts |= {name.capitalize(): " / ".join(rows[name].unique()) for name in ("commit", "hardware", "versions")}
    return facts | {"When": " to ".join(dict.fromkeys([rows["when"].min(), rows["when"].max()])).replace("T", " ")}


def _cost(profile: Profile) -> str:
    """A row a notebook and their total, as HTML; nothing where the file is missing."""
    if not (paths.results(profile.name) / "notebooks.csv").exists():
        return ""
    rows = tables.read_costs(profile)
    total = {"notebook": "total", "seconds": rows["seconds"].sum(), "peak_gib": rows["peak_gib"].max()}
    different = [name for name in ("commit", "hardware", "versions") if rows[name].nunique() > 1]
    shown = pd.concat([rows, pd.DataFrame([total])])[["notebook", "seconds", "peak_gib", "when", *different]]
    shown["seconds"], shown["peak_gib"] = shown["seconds"].map("{:.0f}".format), shown["peak_gib"].map("{:.1f}".format)
    shown["when"] = shown["when"].str.replace("T", " ")
    return _html(shown.rename(columns={"peak_gib": "peak memory [GiB]"}).fillna(""))


def _table(file: Path, profile: Profile) -> dict[str, str]:
    """A table of the run; its caption is the bold line of the .md file beside it."""
    beside = file.with_suffix(".md")
    said = re.match(r"\*\*(.+)\*\*", beside.read_text(encoding="utf-8") if beside.exists() else "")
    title, bracket, origin = (said[1] if said else file.stem).partition(f" ({profile.world}")
    origin = (bracket + origin).removeprefix(" (").removesuffix(")")
    values = read_csv(file, dtype=str, keep_default_na=False)
    return {"name": file.stem, "title": title, "origin": origin, "body": _html(values)}


def _html(values: pd.DataFrame) -> str:
    with pd.option_context("display.max_colwidth", None):  # else a cell ends after 50 characters
        return _tidy(values.to_html(index=False))


def _figure(file: Path) -> dict[str, str]:
    """A figure of the run; it describes itself in the PNG text "Description", whose first sentence is the caption."""
    try:
        with Image.open(file) as image:
            description = image.info.get("Description", file.name)
        body = picture(file.read_bytes(), description)
    except OSError as error:  # Pillow's own errors are OSErrors
        raise UserError(f"{file} cannot be read ({error}): delete it and run again") from error
    return {"name": file.stem, "title": re.split(r"(?<=\.)\s", description, maxsplit=1)[0], "body": body}


def _code_style() -> str:
    """Colours of code for light and for dark screens."""
    light, dark = (HtmlFormatter(style=name).get_style_defs(".highlight") for name in ("default", "github-dark"))
    return f"{light}\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}"
