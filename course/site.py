"""The notebooks and pages as static HTML that needs no network: searchable, every figure with its description."""

import html
import json
import re
import shutil
import tempfile
from pathlib import Path
from urllib.parse import quote, unquote

import nbformat
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter

from course.files import folder, read
from rtl_core.storage import StudyError

PAGES = (
    "README.md", "notebooks/*.ipynb", "notebooks/solutions/*.ipynb", "notebooks/*.md", "docs/*.md",
    "results/README.md", "data/README.md", "benchmarks/README.md",
)  # fmt: skip
MARK = b"const sections = "  # by it an index.html is known as that of a site
LINK = re.compile(r'(href|src)="(?!https?:|data:|mailto:|#)([^"#]+)(#[^"]*)?"')
# nbconvert's own page, without its scripts from elsewhere, and with the figures' descriptions, which it drops
TEMPLATE = """
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block data_png scoped -%}
<div class="jp-RenderedImage jp-OutputArea-output">
<img src="data:image/png;base64,{{ output.data['image/png'] }}"
     alt="{{ (output | get_metadata('alt', 'image/png') or '') | escape_html }}">
</div>
{%- endblock -%}
{%- block extra_css -%}<style>main { max-width: 60rem; margin: auto; padding: 1rem; }</style>{%- endblock -%}
{%- block body_header -%}{{ super() }}
<nav class="jp-RenderedHTMLCommon"><a href="HOME">All pages and search</a></nav>
{%- endblock -%}
"""
INDEX = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Reverse transfer learning</title>
<style>body { font: 1rem/1.5 sans-serif; max-width: 48rem; margin: auto; padding: 1rem; }
input { font: inherit; width: 100%; padding: .3rem; }</style></head>
<body><main><h1>Reverse transfer learning</h1>
<label for="words">Search all pages: every word must be in the section</label>
<input id="words" type="search" autocomplete="off">
<p id="count" role="status"></p><ul id="found"></ul>
<h2>Pages</h2><ul>PAGES</ul></main>
<script>
const sections = SECTIONS;
const safe = text => text.replace(/[&<>]/g, c => ({"&": "&amp;", "<": "&lt;", ">": "&gt;"})[c]);
const box = document.getElementById("words");
const search = () => {
  const words = box.value.toLowerCase().split(/\\s+/).filter(Boolean);
  const hits = words.length ? sections.filter(s => words.every(w => s.low.includes(w))) : [];
  document.getElementById("count").textContent = words.length ? `${hits.length} sections` : "";
  document.getElementById("found").innerHTML = hits.slice(0, 50).map(s => {
    const at = Math.max(0, s.low.indexOf(words[0], s.name.length) - 60);
    return `<li><a href="${encodeURI(s.to)}">${safe(s.name)}</a><br>… ${safe(s.text.slice(at, at + 160))} …</li>`;
  }).join("");
};
sections.forEach(s => { s.text = s.name + " " + s.text; s.low = s.text.toLowerCase(); });
box.addEventListener("input", search);
box.value = new URLSearchParams(location.search).get("q") || "";
search();
</script></body></html>
"""


def build(root: Path, out: Path, pages: tuple[str, ...] = PAGES) -> list[Path]:
    """Writes the pages below `root` as HTML into `out`, with an index that searches them; returns their files.

    What a page links to and is no page itself, a figure or a source file, is copied beside it; folders lose their
    link. Raises: StudyError where a page has no title or links to what does not exist, and where `out` holds
    anything but an old site; what was in `out` then stays.
    """
    root, goal = root.resolve(), out.resolve()
    sources = {
        path: path.relative_to(root).with_suffix(".html") for p in pages for path in sorted(root.glob(p))
    }
    _refuse_what_is_no_site(root, goal, sources)
    try:
        with tempfile.TemporaryDirectory(dir=folder(goal.parent), prefix=f".{goal.name}.") as beside:
            new, old = Path(beside, "new"), Path(beside, "old")
            names = _written(root, folder(new), sources)
            try:
                if goal.exists():
                    goal.rename(old)
                new.rename(goal)
            finally:
                if old.exists() and not goal.exists():
                    old.rename(goal)
    except OSError as error:
        raise StudyError(f"could not build {out}: {error}. Mend that and build it again.") from error
    return [out / name for name in names]


def _refuse_what_is_no_site(root: Path, out: Path, sources: dict) -> None:
    """Raises: StudyError unless `out` is missing, is empty or holds an old site and no source of a page."""
    index = out / "index.html"
    if any(path.is_relative_to(out) for path in (root, *sources)):
        found = "holds the pages' sources"
    elif out.exists() and not out.is_dir():
        found = "is a file"
    elif out.exists() and any(out.iterdir()) and not (index.is_file() and MARK in index.read_bytes()):
        found = "holds other files than those of a site"
    else:
        return
    raise StudyError(f"{out} {found} and would be replaced; name a new or an empty folder with --out.")


def _written(root: Path, out: Path, sources: dict) -> list[Path]:
    """Writes index.html and all pages into `out`; returns their names there."""
    sections, titles = [], {}
    for path, name in sources.items():
        notebook = _as_notebook(path)
        number = re.match(r"\d\d_", name.name)
        title = _title(notebook, path.relative_to(root))
        titles[name] = f"{number[0][:2]} {title}" if number else title
        home = "../" * (len(name.parts) - 1) + "index.html"
        exporter = HTMLExporter(raw_template=TEMPLATE.replace("HOME", home))
        page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": titles[name]}})
        page = LINK.sub(lambda link, path=path: _relinked(link, path, root, out, sources), page)
        folder((out / name).parent)
        (out / name).write_text(page, encoding="utf-8")
        sections += _sections(page, titles[name], name)
    links = "".join(
        f'<li><a href="{name.as_posix()}">{html.escape(t)}</a></li>' for name, t in titles.items()
    )
    found = json.dumps(sections, ensure_ascii=False).replace("</", "<\\/")
    (out / "index.html").write_text(
        INDEX.replace("PAGES", links).replace("SECTIONS", found), encoding="utf-8"
    )
    return [Path("index.html"), *titles]


def _as_notebook(path: Path):
    """Returns a page as a notebook: a Markdown file is one cell."""
    if path.suffix == ".ipynb":
        return read(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise StudyError(f"{path} is not UTF-8 ({error}); save it as UTF-8.") from error
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])


def _title(notebook, name: Path) -> str:
    """Returns the heading in the first cell. Raises: StudyError when there is none."""
    first = notebook.cells[0] if notebook.cells else None
    text = first.source if first and first.cell_type == "markdown" else ""
    if not (found := re.search(r"^# (.+)", text, re.M)):
        raise StudyError(f"{name} does not begin with a title; begin it with a line `# Its title`.")
    return found[1]


def _relinked(link: re.Match, path: Path, root: Path, out: Path, sources: dict) -> str:
    """Returns a relative link as the site has it."""
    kind, target, anchor = link[1], link[2], link[3] or ""
    goal = (path.parent / unquote(html.unescape(target))).resolve()
    if goal in sources:
        place = "".join(target.rpartition("/")[:2])
        return f'{kind}="{place}{quote(sources[goal].name)}{anchor}"'
    if goal == root / "index.html":  # of the site, not of the project
        return link[0]
    if not goal.is_relative_to(root):
        advice = "copy it into the project, or link to it on the web."
        raise StudyError(
            f"{path.relative_to(root)} links to {target}, which is outside the project; {advice}"
        )
    if not goal.exists():
        raise StudyError(f"{path.relative_to(root)} links to {target}, which does not exist; mend the link.")
    if goal.is_dir():
        return 'title="a folder of the project"'
    copy = out / goal.relative_to(root)
    shutil.copyfile(goal, folder(copy.parent) / copy.name)
    return link[0]


def _sections(page: str, title: str, name: Path) -> list[dict[str, str]]:
    """Returns what the search looks through: a heading with all that stands below it a row."""
    main = BeautifulSoup(page, "html.parser").main
    for heading in main.select("h1, h2, h3, h4"):
        heading.replace_with(f"\0{heading.get('id', '')}\1{heading.get_text().rstrip('¶')}\1")
    found = [part.split("\1") for part in main.get_text(" ").split("\0")[1:]]
    return [
        {
            "name": f"{title}: {head}" if place else title,
            "to": f"{name.as_posix()}#{to}",
            "text": " ".join(text.split()),
        }
        for place, (to, head, text) in enumerate(found)
    ]
