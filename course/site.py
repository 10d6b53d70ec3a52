"""The notebooks and pages as static HTML that needs no network: searchable, every figure with its description."""

import html
import json
import re
import shutil
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter

from rtl_core.storage import StudyError

PAGES = (
    "README.md", "notebooks/*.ipynb", "notebooks/solutions/*.ipynb", "notebooks/*.md", "docs/*.md",
    "results/README.md", "data/README.md", "benchmarks/README.md",
)  # fmt: skip
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
    link. Raises: StudyError where a page links to what does not exist.
    """
    shutil.rmtree(out, ignore_errors=True)
    sources = {
        path: path.relative_to(root).with_suffix(".html") for p in pages for path in sorted(root.glob(p))
    }
    sections, written, titles = [], [], {}
    for path, name in sources.items():
        notebook = _as_notebook(path)
        number = re.match(r"\d\d_", name.name)
        title = re.search(r"^# (.+)", notebook.cells[0].source, re.M)[1]
        titles[name] = f"{number[0][:2]} {title}" if number else title
        home = "../" * (len(name.parts) - 1) + "index.html"
        exporter = HTMLExporter(raw_template=TEMPLATE.replace("HOME", home))
        page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": titles[name]}})
        written.append(out / name)
        written[-1].parent.mkdir(parents=True, exist_ok=True)
        page = LINK.sub(lambda link, path=path: _relinked(link, path, root, out, sources), page)
        written[-1].write_text(page, encoding="utf-8")
        sections += _sections(page, titles[name], name)
    links = "".join(
        f'<li><a href="{name.as_posix()}">{html.escape(t)}</a></li>' for name, t in titles.items()
    )
    found = json.dumps(sections, ensure_ascii=False).replace("</", "<\\/")
    (out / "index.html").write_text(
        INDEX.replace("PAGES", links).replace("SECTIONS", found), encoding="utf-8"
    )
    return [out / "index.html", *written]


def _as_notebook(path: Path):
    """Returns a page as a notebook: a Markdown file is one cell."""
    if path.suffix == ".ipynb":
        return nbformat.read(path, 4)
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(path.read_text(encoding="utf-8"))])


def _relinked(link: re.Match, path: Path, root: Path, out: Path, sources: dict) -> str:
    """Returns a relative link as the site has it."""
    kind, target, anchor = link[1], link[2], link[3] or ""
    goal = (path.parent / target).resolve()
    if goal in sources:
        name = sources[goal]
        return f'{kind}="{target.removesuffix(goal.name)}{name.name}{anchor}"'
    if goal == root / "index.html":  # of the site, not of the project
        return link[0]
    if not goal.exists():
        raise StudyError(f"{path.relative_to(root)} links to {target}, which does not exist; mend the link.")
    if goal.is_dir():
        return 'title="a folder of the project"'
    copy = out / goal.relative_to(root)
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(goal, copy)
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
