"""The course: every notebook keeps the frame, links lead somewhere, exercises have solutions, words are explained."""

import ast
import importlib
import json
import os
import re
import sys
from functools import partial
from pathlib import Path

import nbformat
import pytest
from bs4 import BeautifulSoup
from conftest import ROOT

from course import blank, execution, figures, site
from course.__main__ import main
from rtl_core import exercises, report
from rtl_core import notebook as nb
from rtl_core.catalogue import CONTROLS, OUTSIDE, SOURCES
from rtl_core.choices import CHOICES
from rtl_core.figures.style import new_axes
from rtl_core.storage import StudyError, read_json, write_json

FOLDER = ROOT / "notebooks"
BOOKS = {path.name: nbformat.read(path, 4) for path in sorted(FOLDER.glob("[0-9]*.ipynb"))}
SOLUTIONS = nbformat.read(FOLDER / "solutions" / "solutions.ipynb", 4)
PAGES = {
    p: p.read_text(encoding="utf-8")
    for p in (ROOT / "README.md", *ROOT.glob("*/*.md"))
    if p.parent.name[0] != "."
}
LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]+)(?:#[^)]*)?\)")
CHECK = re.compile(r"exercises\.(check_\w+)\(answer\)")
MINUTES = re.compile(r"^\d\. \*[^*]+\((?:\d+ minutes|an hour)\)\.\*", re.M)
WORDS_A_LINE = (3, 6)  # of prose in the sections, for each line of code


def prose(book) -> str:
    return "\n\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")


def code(book) -> str:
    return "\n".join(cell.source for cell in book.cells if cell.cell_type == "code")


# The frame


def frame_faults(name: str, book) -> list[str]:
    text, number = prose(book), name[:2]
    headings = re.findall(r"^(#+) (.+)$", text, re.M)
    levels = [len(marks) for marks, _ in headings]
    ends = [title for marks, title in headings if marks == "##"][-4:]
    sections = text.partition("\n## Summary")[0].partition("\n## ")[2]
    words = len(re.findall(r"[A-Za-z][\w'’-]*", re.sub(r"^\|.*$", "", sections, flags=re.M)))
    lines = len([line for line in code(book).splitlines() if line.strip()])
    rubric = f"<details><summary>{blank.RUBRIC}</summary>"
    expected = {
        "one title": levels.count(1) == 1 and levels[0] == 1,
        "headings in order": all(b - a <= 1 for a, b in zip(levels, levels[1:])),
        "a question": "**The question of this notebook:**" in text,
        "three to five objectives": 3 <= len(re.findall("^- ", book.cells[0].source, re.M)) <= 5,
        "what it needs": "\nYou need" in book.cells[0].source,
        "its banner": code(book).count(f'nb.banner("{number}")') == 1,
        "a prediction or two": 1 <= code(book).count("nb.predict(") <= 2,
        "a result for each": code(book).count("nb.predict(") == code(book).count(".against("),
        "something by hand": "**By hand" in text,
        "a deliberate mistake": bool(re.search("deliberate mistake|mistakes?, on purpose", text, re.I)),
        "what you should see": text.count("**What you should see") >= 3,
        "what it does not show": text.count("**What it does not show") >= 2,
        "checks of what should be seen": code(book).count("assert ") >= 3,
        "the last four headings": ends == ["Summary", "Exercises", "Where next", "Sources"],
        "a rubric": text.count(rubric) == 1,
        "two checked exercises": len(CHECK.findall(code(book))) == 2,
        "minutes for each exercise": len(MINUTES.findall(text)) == 3,
        "words of prose a line of code": WORDS_A_LINE[0] <= words / max(lines, 1) <= WORDS_A_LINE[1],
    }  # fmt: skip
    return [
        f"{name}: {part} is missing or not as it should be" for part, right in expected.items() if not right
    ]


@pytest.mark.parametrize("name", BOOKS)
def test_frame(name):
    faults = frame_faults(name, BOOKS[name])
    if name.startswith("00"):  # the tour has little code and names every idea
        faults = [fault for fault in faults if "words of prose" not in fault]
    assert not faults, "\n" + "\n".join(faults)


def test_a_notebook_without_frame_is_found():
    bare = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A\n\n### B\n")])
    assert len(frame_faults("00_a", bare)) == 16


def test_numbers_run_through():
    numbers = [name[:2] for name in BOOKS]
    assert numbers == sorted(set(numbers))


def test_each_leads_to_the_next():
    names = list(BOOKS)
    for before, after in zip(names, names[1:]):
        assert f"]({after})" in prose(BOOKS[before]).partition("## Where next")[2], (
            f"{before}: no link to {after}"
        )
        assert f"]({before})" in prose(BOOKS[after]).partition("## Where next")[2], (
            f"{after}: no link to {before}"
        )
    for name in names[1:]:
        assert f"]({name})" in prose(BOOKS[names[0]]), f"the start does not name {name}"


# Links


def link_faults(path: Path, text: str) -> list[str]:
    text = re.sub(r"^(```.*?^```|    .*?$)", "", text, flags=re.M | re.S)
    targets = [t for t in LINK.findall(text) if "://" not in t]
    return [f"{path.relative_to(ROOT)}: {t}" for t in targets if not (path.parent / t).exists()]


def test_links_lead_somewhere():
    texts = PAGES | {FOLDER / name: prose(book) for name, book in BOOKS.items()}
    texts[FOLDER / "solutions" / "solutions.ipynb"] = prose(SOLUTIONS)
    faults = [fault for path, text in texts.items() for fault in link_faults(path, text)]
    assert not faults, "\n" + "\n".join(faults)


def test_a_dead_link_is_found():
    text = "[a](README.md) [b](nowhere.md#x) [c](https://example.org/x) [d](#here)"
    assert link_faults(ROOT / "x.md", text) == ["x.md: nowhere.md"]


# Exercises and solutions


def test_every_check_has_its_exercise_and_its_solution():
    checks = {name for name in vars(exercises) if name.startswith("check_")}
    for name, book in BOOKS.items():
        for place, check in enumerate(CHECK.findall(code(book)), 1):
            assert check in checks, f"{name} calls {check}, which is not in exercises.py"
            assert f"notebook {name[:2]}, exercise {place}:" in getattr(exercises, check).__doc__.lower()
            checks.remove(check)
    assert not checks, f"no notebook calls {checks}"
    solved = CHECK.findall(code(SOLUTIONS))
    assert solved == [check for book in BOOKS.values() for check in CHECK.findall(code(book))]


def test_stubs_are_to_do_and_solutions_are_right(monkeypatch, capsys):
    """Runs the notebook of solutions, strictly, in this process; as given, the exercises wait."""
    for book in BOOKS.values():
        stubs = [cell.source for cell in book.cells if cell.cell_type == "code" and CHECK.search(cell.source)]
        assert all(last_value(stub, {"exercises": exercises}).state == exercises.TODO for stub in stubs)
    monkeypatch.setenv("RTL_STRICT", "0")  # the notebook sets it; monkeypatch takes it back
    names: dict = {}
    values = [last_value(cell.source, names) for cell in SOLUTIONS.cells if cell.cell_type == "code"]
    verdicts = [value for value in values if isinstance(value, exercises.Verdict)]
    assert len(verdicts) == len(CHECK.findall(code(SOLUTIONS)))
    assert {v.state for v in verdicts} == {exercises.RIGHT}


def last_value(source: str, names: dict):
    """What a cell shows: the value of its last line, if that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)


# The glossary


def glossary_rows(text: str) -> list[dict[str, str]]:
    lines = [
        [part.strip() for part in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"
    ]
    return [dict(zip(lines[0], line)) for line in lines[2:]]


def is_in_the_code(name: str) -> bool:
    """A source, a control, a value of a setting, or a path of names below rtl_core."""
    if name in SOURCES | OUTSIDE | CONTROLS or any(name in values for values in CHOICES.values()):
        return True
    parts = f"rtl_core.{name}".split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            fields = getattr(found, "__dataclass_fields__", {})
            found = fields[part] if part in fields else getattr(found, part, None)
        return found is not None
    return False


def glossary_faults(text: str) -> list[str]:
    rows, faults = glossary_rows(text), []
    order = [re.sub(r"[^a-z0-9 ]", "", row["term"].lower()) for row in rows]
    faults += [] if order == sorted(order) else [f"not in order: {order}"]
    for row in rows:
        name, link = row["code name"].strip("`"), LINK.search(row["notebook"])
        book = Path(link[1]).name if link else ""
        faults += [] if is_in_the_code(name) else [f"{row['term']}: rtl_core has no {name}"]
        faults += (
            [] if row["notebook"].startswith(f"[{book[:2]}]") else [f"{row['term']}: number of its notebook"]
        )
        said = book in BOOKS and row["term"].strip("`").lower() in prose(BOOKS[book]).lower()
        faults += [] if said else [f"{row['term']} is not in {book or 'a notebook'}"]
    return faults


def test_glossary():
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    faults = glossary_faults(text)
    assert not faults, "\n" + "\n".join(faults)
    assert len(glossary_rows(text)) > 50


def test_a_wrong_entry_is_found():
    head = "| term | code name | notebook |\n|---|---|---|\n"
    link = "[00](../notebooks/00_start_here.ipynb)"
    assert glossary_faults(f"{head}| arm | `config.Experiment` | {link} |\n") == []
    wrong = (
        f"| perplexity | `scoring.nothing` | {link} |\n| qwerty | `lsa` | {link.replace('[00', '[01')} |\n"
    )
    assert len(glossary_faults(f"{head}{wrong}| arm | `nowhere.at.all` | |\n")) == 7


def test_every_plan_names_every_notebook():
    text = (FOLDER / "teaching.md").read_text(encoding="utf-8")
    for name in BOOKS:
        part = re.search(rf"^### [^\n]*\]\({name}\).*?(?=^##|\Z)", text, re.M | re.S)
        assert part, f"teaching.md has no part for {name}"
        for word in ("*Goal.*", "*Run live.*", "*Wrong guesses.*", "*Board.*", "*Quiz.*"):
            assert word in part[0], f"teaching.md, {name}: {word}"
        assert part[0].count("*Answer:*") == 3, f"teaching.md, {name}: three answers"


# What a notebook shows of itself


@pytest.fixture
def shown(monkeypatch):
    """Everything that is displayed, in order."""
    found = []
    monkeypatch.setattr("IPython.display.display", found.append)
    return found


def small_notebook(path: Path, *sources: str, words: int = 3) -> Path:
    cells = [nbformat.v4.new_markdown_cell("# A title\n" + "word " * (words - 3))]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def test_banner_says_what_was_measured(tmp_path, shown):
    small_notebook(tmp_path / "07_a.ipynb", "x = 1\n" * 15, words=300)
    assert nb.cost("07", tmp_path)["time to read"] == "3 min"
    assert nb.cost("07", tmp_path)["time to run"] == "not measured yet: make notebooks"
    measured = {"seconds": 14.2, "first_seconds": 130.0, "memory_mb": 1240, "download_mb": 0}
    times = {"machine": nb.machine(), "size": "quick", "notebooks": {"07": measured}}
    write_json(tmp_path / "times.json", times)
    cost = nb.cost("07", tmp_path)
    assert cost["time to run"] == "14 s here, 2 min the first time"
    assert (cost["memory"], cost["downloads"]) == ("1.2 GB", "none")
    write_json(tmp_path / "times.json", times | {"machine": "cuda, 64 cores"})
    assert nb.cost("07", tmp_path)["time to run"].startswith("14 s on cuda, 64 cores")
    nb.banner("00")
    assert "| time to read | time to run | memory | device | downloads |" in shown[0].data


def test_measured_times_are_of_the_notebooks_there_are():
    path = FOLDER / "times.json"
    measured = read_json(path)["notebooks"] if path.exists() else {}
    assert set(measured) <= {name[:2] for name in BOOKS}


def test_a_guess_stands_beside_its_result(shown):
    guess = nb.predict("Which?", ("a", "b"))
    guess.against("b")
    guess.choose("a")
    guess.against("b")
    guess.choose("b")
    guess.against("b")
    texts = [each.data for each in shown]
    assert texts[0] == "**Predict before you run:** Which? *Options:* a · b."
    assert texts[1] == "*Which?* You made no guess. Measured: **b**."
    assert texts[2] == "*Which?* Your guess: a. Measured: **b**. A surprise?"
    assert texts[3] == "*Which?* Your guess: b. Measured: **b**. As you said."
    for method in (guess.choose, guess.against):
        with pytest.raises(StudyError, match="unknown option 'c'"):
            method("c")
    for options in (("a",), ("a", "a")):
        with pytest.raises(StudyError, match="two options or more"):
            nb.predict("Which?", options)


def test_a_click_is_kept(shown, monkeypatch):
    assert not nb.widgets_on() or os.environ.get("RTL_WIDGETS") != "off"
    monkeypatch.setattr(nb, "widgets_on", lambda: True)
    guess = nb.predict("Which?", ("a", "b"))
    buttons = shown[1]
    assert (buttons.value, guess.made) == (None, None)
    buttons.value = "b"
    assert guess.made == "b"


def test_widgets_are_for_kernels(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", None)
    monkeypatch.delenv("RTL_WIDGETS", raising=False)
    assert nb.widgets_on()
    monkeypatch.setenv("RTL_WIDGETS", "off")
    assert not nb.widgets_on()
    monkeypatch.delitem(sys.modules, "ipykernel")
    monkeypatch.delenv("RTL_WIDGETS")
    assert not nb.widgets_on()


# Commands


def test_execution_is_timed_and_kept(tmp_path, capsys):
    made = "import os, pathlib\np = pathlib.Path(os.environ['RTL_CACHE_DIR'])\np.mkdir(parents=True)\n"
    made += "(p / 'table.bin').write_text('x')\nos.environ['RTL_WIDGETS']"
    path = small_notebook(tmp_path / "03_a.ipynb", made)
    broken = small_notebook(tmp_path / "04_b.ipynb", "1 / 0")
    before = broken.read_bytes()
    with pytest.raises(StudyError, match="04_b.ipynb did not run to its end"):
        execution.execute([path, broken])
    cell = nbformat.read(path, 4).cells[1]
    assert (cell.execution_count, cell.outputs[0].data["text/plain"]) == (1, "'off'")
    assert cell.metadata == {}
    times = read_json(tmp_path / "times.json")
    assert times["machine"] == nb.machine()
    assert set(times["notebooks"]) == {"03"}
    assert set(times["notebooks"]["03"]) == {"first_seconds", "memory_mb", "download_mb"}
    assert times["notebooks"]["03"]["memory_mb"] > 20
    assert broken.read_bytes() == before
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_what_cannot_run_is_said_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "_run", lambda *_: pytest.fail("it was run"))
    whole, broken = small_notebook(tmp_path / "03_a.ipynb", "1"), tmp_path / "04_b.ipynb"
    (tmp_path / "page.md").write_text("# A page\n")
    for name in ("05_c.ipynb", "page.md", "."):
        with pytest.raises(StudyError, match="there is no notebook .* ends in .ipynb"):
            execution.execute([whole, tmp_path / name])
    for text in (
        "no notebook",
        "[]",
        "{}",
        '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{}]}',
    ):
        broken.write_text(text)
        with pytest.raises(StudyError, match="04_b.ipynb is no whole notebook"):
            execution.execute([whole, broken])
    with pytest.raises(StudyError, match="page.md cannot be a folder .*--out"):
        execution.execute([whole], tmp_path / "page.md")


def test_times_of_one_machine(tmp_path):
    path = tmp_path / "times.json"
    execution._note(path, "00", {"first_seconds": 90.0, "memory_mb": 500, "download_mb": 0})
    execution._note(path, "00", {"seconds": 9.0, "memory_mb": 300, "download_mb": 0})
    execution._note(path, "00", {"first_seconds": 5.0, "memory_mb": 400, "download_mb": 0})
    execution._note(path, "01", {"seconds": 3.0, "memory_mb": 100, "download_mb": 0})
    found = read_json(path)["notebooks"]
    assert found["00"] == {"first_seconds": 90.0, "memory_mb": 500, "download_mb": 0, "seconds": 9.0}
    assert list(found) == ["00", "01"]
    write_json(path, read_json(path) | {"machine": "another"})
    execution._note(path, "01", {"seconds": 4.0, "memory_mb": 100, "download_mb": 0})
    assert list(read_json(path)["notebooks"]) == ["01"]


@pytest.fixture
def project(tmp_path):
    """A small project with a notebook that has a figure, a page that links to it, a figure and a source file."""
    root = tmp_path / "project"
    for folder in ("notebooks", "docs", "figures", "rtl_core"):
        (root / folder).mkdir(parents=True)
    text = "See [the page](../docs/page.md#a-part), [code](../rtl_core/x.py), [all](../rtl_core) & [web](https://x.org)."
    image = {"image/png": "aaaa", "text/plain": "Bars: a 1 < b 2."}
    cells = [
        nbformat.v4.new_markdown_cell(f"# The notebook\n{text}\n## 1. A part\nA zebra."),
        nbformat.v4.new_code_cell("x"),
    ]
    alt = {"image/png": {"alt": "Bars: a 1 < b 2."}}
    cells[1].outputs = [nbformat.v4.new_output("display_data", data=image, metadata=alt)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "notebooks" / "00_a.ipynb")
    (root / "docs" / "page.md").write_text(
        "# The page\n[back](../notebooks/00_a.ipynb)\n\n![A dot.](../figures/f.svg)\n"
    )
    (root / "figures" / "f.svg").write_text("<svg/>")
    (root / "rtl_core" / "x.py").write_text("x = 1\n")
    return root


def test_site_is_whole_and_offline(project, tmp_path):
    out = tmp_path / "site"
    written = site.build(project, out)
    assert [p.relative_to(out).as_posix() for p in written] == [
        "index.html",
        "notebooks/00_a.html",
        "docs/page.html",
    ]
    assert (out / "figures/f.svg").exists() and (out / "rtl_core/x.py").exists()
    for path in written:
        page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        loaded = [
            tag.get("src") or tag.get("href") for tag in page.select("script[src], link[href], img[src]")
        ]
        assert all(address.startswith("data:") or "://" not in address for address in loaded)
        assert "import(" not in "".join(script.text for script in page.select("script"))
        assert all(image.get("alt") for image in page.select("img"))
        for link in page.select("a[href]"):
            target = link["href"].partition("#")[0]
            assert "://" in target or not target or (path.parent / target).exists(), target
        assert page.html["lang"] == "en"
    notebook = BeautifulSoup(written[1].read_text(encoding="utf-8"), "html.parser")
    assert notebook.img["alt"] == "Bars: a 1 < b 2."
    assert [a["href"] for a in notebook.select("main a[href]:not(.anchor-link)")] == [
        "../index.html",
        "../docs/page.html#a-part",
        "../rtl_core/x.py",
        "https://x.org",
    ]


def test_site_is_searchable(project, tmp_path):
    page = site.build(project, tmp_path / "site")[0].read_text(encoding="utf-8")
    sections = json.loads(re.search(r"const sections = (\[.*\]);", page)[1])
    found = [s for s in sections if "zebra" in s["text"]]
    assert [(s["name"], s["to"]) for s in found] == [
        ("00 The notebook: 1. A part", "notebooks/00_a.html#1.-A-part")
    ]
    anchor = found[0]["to"].partition("#")[2]
    html = (tmp_path / "site" / "notebooks" / "00_a.html").read_text(encoding="utf-8")
    assert f'id="{anchor}"' in html


def test_site_names_a_dead_link(project, tmp_path):
    (project / "docs" / "page.md").write_text("# The page\n[gone](gone.md)\n")
    with pytest.raises(StudyError, match="docs/page.md links to gone.md, which does not exist"):
        site.build(project, tmp_path / "site")


def test_site_replaces_nothing_but_a_site(project, tmp_path):
    def files():
        return {p: p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file()}

    other = tmp_path / "other"
    other.mkdir()
    (other / "index.html").write_text("my own page")
    before = files()
    for out in (project, tmp_path, project / "notebooks", project / "rtl_core", other):
        with pytest.raises(StudyError, match="would be replaced; name a new or an empty folder with --out"):
            site.build(project, out)
    with pytest.raises(StudyError, match="x.py is a file and would be replaced"):
        site.build(project, project / "rtl_core" / "x.py")
    with pytest.raises(StudyError, match="x.py cannot be a folder"):
        site.build(project, project / "rtl_core" / "x.py" / "site")
    index = project / "index.html"  # beside the sources it makes no site of them
    index.write_text("const sections = []")
    with pytest.raises(StudyError, match="holds the pages' sources"):
        site.build(project, project)
    index.unlink()
    assert files() == before


def test_a_failed_build_leaves_the_old_site(project, tmp_path, monkeypatch):
    out = tmp_path / "site"
    out.mkdir()  # an empty folder is fine
    index = site.build(project, out)[0]
    index.with_name("stale.html").write_text("of a page that is gone")
    (project / "docs" / "page.md").write_text("# The page\n[gone](gone.md)\n")
    with pytest.raises(StudyError, match="does not exist"):
        site.build(project, out)
    (project / "docs" / "page.md").write_text("# The page\nA lynx.\n")
    rename = Path.rename
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda p, goal: os.stat("") if p.name == "new" else rename(p, goal))
        with pytest.raises(StudyError, match="could not build .*site: "):
            site.build(project, out)
    assert index.with_name("stale.html").exists() and "lynx" not in index.read_text(encoding="utf-8")
    site.build(project, out)
    assert not index.with_name("stale.html").exists() and "lynx" in index.read_text(encoding="utf-8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["project", "site"]


def test_site_says_what_is_wrong_with_a_page(project, tmp_path):
    page, book = project / "docs" / "page.md", project / "notebooks" / "01_b.ipynb"
    whole = page.read_bytes()
    for text, message in (
        (b"No title.", "docs/page.md does not begin with a title"),
        (b"# A\n[out](../../x.md)", "docs/page.md links to ../../x.md, which is outside the project"),
        (b"# A\n\xff", "page.md is not UTF-8"),
    ):
        page.write_bytes(text)
        with pytest.raises(StudyError, match=message):
            site.build(project, tmp_path / "site")
    page.write_bytes(whole)
    for cells in ([], [nbformat.v4.new_code_cell("# no title")]):
        nbformat.write(nbformat.v4.new_notebook(cells=cells), book)
        with pytest.raises(StudyError, match="notebooks/01_b.ipynb does not begin with a title"):
            site.build(project, tmp_path / "site")
    book.write_text("no notebook")
    with pytest.raises(StudyError, match="01_b.ipynb is no whole notebook"):
        site.build(project, tmp_path / "site")


def test_links_with_spaces(project, tmp_path):
    (project / "docs" / "a b.txt").write_text("text")
    (project / "docs" / "c d.md").write_text("# Another\n[a](a%20b.txt)\n")
    (project / "docs" / "page.md").write_text("# The page\n[c](../docs/c%20d.md#x)\n")
    out = tmp_path / "site"
    site.build(project, out)
    assert (out / "docs" / "a b.txt").read_text() == "text"
    assert 'href="../docs/c%20d.html#x"' in (out / "docs" / "page.html").read_text(encoding="utf-8")


def test_blank_copies(tmp_path):
    written = blank.write(FOLDER, tmp_path / "blank")
    assert [path.name for path in written] == list(BOOKS)
    for path in written:
        copy, whole = nbformat.read(path, 4), BOOKS[path.name]
        assert [cell.id for cell in copy.cells] == [cell.id for cell in whole.cells]
        assert code(copy) == code(whole)
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in copy.cells)
        text = prose(copy)
        assert blank.RUBRIC not in text and "solutions" not in text and "</details>" not in text
        assert "## Exercises" in text and "## Where next" in text
    assert prose(BOOKS["01_corpora_and_domains.ipynb"]).count("Solutions") == 1  # the copy is what changed


def test_blank_copies_lose_nothing(project):
    folder, out = project / "notebooks", project / "blank"
    before = (folder / "00_a.ipynb").read_bytes()
    (project / "link").symlink_to(folder)
    for same in (folder, project / "docs" / ".." / "notebooks", project / "link"):
        with pytest.raises(StudyError, match="holds the notebooks themselves"):
            blank.write(folder, same)
    assert (folder / "00_a.ipynb").read_bytes() == before
    with pytest.raises(StudyError, match="x.py cannot be a folder"):
        blank.write(folder, project / "rtl_core" / "x.py")
    (folder / "01_b.ipynb").write_text("no notebook")
    with pytest.raises(StudyError, match="01_b.ipynb is no whole notebook"):
        blank.write(folder, out)
    assert not out.exists()


def test_a_blank_copy_is_whole_or_the_old_one(project, monkeypatch):
    copy = blank.write(project / "notebooks", project / "blank")[0]
    before = copy.read_bytes()

    def full(notebook, path):
        Path(path).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nbformat, "write", full)
    with pytest.raises(StudyError, match="the disk is full"):
        blank.write(project / "notebooks", project / "blank")
    assert copy.read_bytes() == before


def test_figures_are_byte_stable_and_described(tmp_path, monkeypatch):
    def draw(height):
        ax = new_axes(2)
        ax.bar(["a", "b"], [1, height])
        return ax, f"Bars: a 1, b {height}."

    monkeypatch.setattr(report, "study_figures", lambda: {"one": partial(draw, 2), "two": partial(draw, 3)})
    first, again = figures.write(tmp_path / "first"), figures.write(tmp_path / "again")
    assert [p.name for p in first] == [f"{n}.{k}" for n in ("one", "two") for k in ("svg", "pdf", "png")] + [
        "README.md"
    ]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]
    text = first[-1].read_text(encoding="utf-8")
    assert text.count("Bars: a 1, b 2.") == 2  # alternative text and caption
    assert "![Bars: a 1, b 3.](two.svg)" in text


def test_commands(project, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("course.__main__.project_root", lambda: project)
    assert main(["site", "--out", str(tmp_path / "site")]) == 0
    assert capsys.readouterr().out.strip().endswith("index.html")
    assert main(["blank"]) == 0
    assert (project / "blank" / "00_a.ipynb").exists()
    (project / "docs" / "page.md").write_text("# The page\n[gone](gone.md)\n")
    assert main(["site"]) == 2
    assert "course: docs/page.md links to gone.md" in capsys.readouterr().err


def test_ctrl_c_ends_without_a_traceback(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(blank, "write", interrupted)
    assert main(["blank"]) == 130
    assert capsys.readouterr().err.startswith("course: interrupted; what was finished is kept.")
