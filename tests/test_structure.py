"""The shape of the code: import direction, size budget, docstrings, clean notebooks."""

import ast
import io
import re
import statistics
import subprocess
import sys
import tokenize
from functools import cache

import nbformat
import pytest
from conftest import ROOT

# Each module may import from earlier rows only.
LAYERS = (
    ("storage",),
    ("catalogue",),
    ("choices",),
    ("config",),
    ("corpora",),
    ("studies",),
    ("texts", "batches", "embeddings"),
    ("kernels",),
    ("training",),
    ("softmax",),
    ("criteria",),
    ("input_layers", "recurrent"),
    ("language_model",),
    ("pretrain",),
    ("transfer", "tuning", "context"),
    ("scoring",),
    ("bounds", "slices"),
    ("results",),
    ("findings",),
    ("comparison",),
    ("tables",),
    ("experiments", "analysis"),
    ("maps",),
    ("figures",),
    ("report", "doctor", "notebook", "exercises", "atlas", "arguments"),
    ("__init__",),
    ("__main__",),
)
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}
SHARED_BY_PRETRAINERS = ("encoder", "averaging", "classifier", "pretrained", "supervised")
COMPARING = ("__init__", "objective")  # which bring the pretrainers together
SLOW_TO_IMPORT = ("gensim", "umap", "IPython")
OUTER = ("figures", "notebook", "exercises", "atlas", "report", "doctor", "arguments", "__main__")
LIMITS = {"file": 300, "function": 40, "median function": 12, "nesting": 3, "parameters": 6}
BUDGET = {"core": 7820, "figures and shell": 2325}
HOME = re.compile(r"/(?:home|Users|root)/\w|[A-Z]:\\+Users\\")
ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:home|Users|root|tmp|private|var|opt|usr|mnt)/|file:///|[A-Z]:\\\\?\w")
BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NAMED = (*FUNCTIONS, ast.ClassDef)
LAYOUT = {getattr(tokenize, n) for n in ("COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER")}

MODULES = {
    path.relative_to(ROOT / "rtl_core").with_suffix("").as_posix(): path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "rtl_core").rglob("*.py"))
}
NOTEBOOKS = {path.name: nbformat.read(path, 4) for path in sorted((ROOT / "notebooks").rglob("*.ipynb"))}


# Imports


def imported_modules(name: str, tree: ast.AST) -> set[str]:
    """Modules of rtl_core that a module imports anywhere, as `corpora/text` (a package: `corpora`)."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            found.add("relative import")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rtl_core":
            inside = node.module.split(".")[1:]
            children = ["/".join([*inside, alias.name]) for alias in node.names]
            found |= {c if c in MODULES or f"{c}/__init__" in MODULES else "/".join(inside) for c in children}
        elif isinstance(node, ast.Import):
            paths = [alias.name.split(".") for alias in node.names]
            found |= {"/".join(path[1:]) for path in paths if path[0] == "rtl_core"}
    return {module or "__init__" for module in found} - {name}


def direction_faults(name: str, text: str) -> list[str]:
    part, _, rest = name.partition("/")
    if part not in RANK:
        return [f"{name}: not in LAYERS of this test; give the new module its place there"]
    faults = []
    for target in sorted(imported_modules(name, ast.parse(text))):
        other, _, sibling = target.partition("/")
        if other == part and rest:
            free = part != "pretrain" or rest in COMPARING or sibling in SHARED_BY_PRETRAINERS
            faults += [] if free else [f"{name} imports its sibling {target}"]
        elif RANK.get(other, len(LAYERS)) >= RANK[part]:
            faults.append(f"{name} imports {target}, which does not come before it")
    return faults


def slow_import_faults(name: str, text: str) -> list[str]:
    tree = ast.parse(text)
    lazy = {n for f in ast.walk(tree) if isinstance(f, FUNCTIONS) for n in ast.walk(f)}
    eager = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom)) and n not in lazy]
    packages = [alias.name for n in eager for alias in getattr(n, "names", []) if isinstance(n, ast.Import)]
    packages += [n.module or "" for n in eager if isinstance(n, ast.ImportFrom)]
    return [f"{name} imports {p} outside a function" for p in packages if p.split(".")[0] in SLOW_TO_IMPORT]


# Size


@cache
def code_lines(text: str) -> set[int]:
    """The numbers of lines that hold code: no blanks, comments or docstrings."""
    used: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in LAYOUT:
            used |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, *NAMED)) and ast.get_docstring(node) is not None:
            used -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return used


@cache
def functions(text: str) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, FUNCTIONS)]


def length(function: ast.FunctionDef, used: set[int]) -> int:
    return len(used & set(range(function.lineno, function.end_lineno + 1)))


def nesting(node: ast.AST) -> int:
    """Depth of blocks inside blocks; `elif` is no deeper than its `if`, an inner function begins anew."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, NAMED):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, nesting(child) + (isinstance(child, BLOCKS) and not is_elif))
    return deepest


def parameters(function: ast.FunctionDef) -> int:
    names = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len([n for n in names if n not in ("self", "cls")])


def size_faults(name: str, text: str) -> list[str]:
    used = code_lines(text)
    faults = [f"{name}: {len(used)} lines of code"] if len(used) > LIMITS["file"] else []
    for f in functions(text):
        sizes = {"function": length(f, used), "nesting": nesting(f), "parameters": parameters(f)}
        faults += [f"{name}.{f.name}: {k} {n}, limit {LIMITS[k]}" for k, n in sizes.items() if n > LIMITS[k]]
    return faults


def budget_faults(modules: dict[str, str]) -> list[str]:
    total = dict.fromkeys(BUDGET, 0)
    for name, text in modules.items():
        total["figures and shell" if name.split("/")[0] in OUTER else "core"] += len(code_lines(text))
    lengths = [length(f, code_lines(text)) for text in modules.values() for f in functions(text)]
    median = statistics.median(lengths)
    over = [part for part in BUDGET if total[part] > BUDGET[part]]
    faults = [f"{part}: {total[part]} lines of code, budget {BUDGET[part]}" for part in over]
    return faults + ([f"median function: {median} lines"] if median > LIMITS["median function"] else [])


# Words


def docstring_faults(name: str, text: str) -> list[str]:
    def public(node, prefix):
        for child in node.body:
            if isinstance(child, NAMED):
                if not child.name.startswith("_"):
                    yield f"{prefix}.{child.name}", child
                if isinstance(child, ast.ClassDef):
                    yield from public(child, f"{prefix}.{child.name}")

    tree = ast.parse(text)
    nodes = [(name, tree)] if tree.body else []
    nodes += public(tree, name)
    return [f"{where} has no docstring" for where, node in nodes if not ast.get_docstring(node)]


def home_path_faults(name: str, text: str) -> list[str]:
    lines = enumerate(text.split("\n"), 1)
    return [f"{name}:{number}: {line.strip()[:80]}" for number, line in lines if HOME.search(line)]


def tracked_texts() -> dict[str, str]:
    """Text files that git has or would add; without git, those of the project's own folders."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    if (ROOT / ".git").exists():
        done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True)
        paths = [ROOT / name for name in done.stdout.splitlines()]
    else:
        own = ("rtl_core", "tests", "notebooks", "benchmarks", "figures", "results/reference")
        paths = [*ROOT.iterdir(), *(path for folder in own for path in (ROOT / folder).rglob("*"))]
    contents = {p.relative_to(ROOT).as_posix(): p.read_bytes() for p in paths if p.is_file()}
    return {name: raw.decode("utf-8") for name, raw in contents.items() if b"\0" not in raw}


# Notebooks


def notebook_faults(name: str, notebook) -> list[str]:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    lengths = [len(cell.source.splitlines()) for cell in code]
    prose = [cell.source for cell in notebook.cells]
    prose += [str(text) for output in outputs for kind, text in printed(output) if "image" not in kind]
    faults = {
        "execution counts are not 1..n": [c.execution_count for c in code] != list(range(1, len(code) + 1)),
        "holds an error": any(o.output_type == "error" for o in outputs),
        "holds stderr output": any(o.get("name") == "stderr" for o in outputs),
        "shows an absolute path": any(ABSOLUTE.search(text) for text in prose),
        "a cell is over 30 lines": max(lengths, default=0) > 30,
        "median cell is over 5 lines": bool(code) and statistics.median(lengths) > 5,
        "a code line is over 79 columns": any(len(line) > 79 for c in code for line in c.source.splitlines()),
        "an image has no description": not (all(map(captioned, outputs)) and "![](" not in "".join(prose)),
        "is over 600 KB": len(nbformat.writes(notebook)) > 600_000,
    }
    return [f"{name}: {fault}" for fault, found in faults.items() if found]


def printed(output) -> list[tuple[str, str]]:
    if output.output_type == "stream":
        return [("text/plain", output.text)]
    return [*output.get("data", {}).items()]


def captioned(output) -> bool:
    """An image needs its sentence twice: as alt metadata, and as the plain text that other readers take."""
    data = output.get("data", {})
    images = [kind for kind in data if kind.startswith("image/")]
    plain = data.get("text/plain", "")
    return all(output.metadata.get(kind, {}).get("alt") for kind in images) and not (
        images and (not plain or plain.startswith("<Figure"))
    )


def definitions(notebook) -> tuple[set[str], set[str]]:
    """Names of functions and classes that a notebook defines, and of variables it assigns."""
    defined, assigned = set(), set()
    for cell in notebook.cells:
        if cell.cell_type == "code" and not cell.source.startswith("%%writefile"):  # another file's names
            source = "\n".join(line for line in cell.source.splitlines() if line[:1] not in ("%", "!"))
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, NAMED):
                    defined.add(node.name)
                elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    assigned.add(node.id)
    return defined, assigned


def exported_names() -> set[str]:
    """What `import rtl_core` offers by name."""
    imports = [n for n in ast.parse(MODULES["__init__"]).body if isinstance(n, (ast.Import, ast.ImportFrom))]
    return {alias.asname or alias.name for node in imports for alias in node.names}


def core_definitions() -> set[str]:
    """Every public function and class of the core."""
    nodes = [node for text in MODULES.values() for node in ast.parse(text).body if isinstance(node, NAMED)]
    return {node.name for node in nodes if not node.name.startswith("_")}


def copy_faults(notebooks: dict) -> list[str]:
    """Notebooks use the core's functions and have no version of their own; no two define the same name."""
    faults, owner = [], {}
    for name, notebook in notebooks.items():
        defined, assigned = definitions(notebook)
        taken = defined & core_definitions() | (defined | assigned) & exported_names()
        faults += [f"{name} redefines {n} of rtl_core" for n in sorted(taken)]
        faults += [f"{name} and {owner[n]} both define {n}" for n in sorted(defined & set(owner))]
        owner |= dict.fromkeys(defined, name)
    return faults


# The checks, on what there is


PER_MODULE = (direction_faults, slow_import_faults, size_faults, docstring_faults)


def none_of(faults) -> None:
    faults = list(faults)
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize("check", PER_MODULE, ids=lambda check: check.__name__)
def test_modules(check):
    none_of(fault for name, text in MODULES.items() for fault in check(name, text))


def test_budget():
    none_of(budget_faults(MODULES))


def test_importing_is_light():
    code = f"import rtl_core, sys; sys.exit(str([m for m in {SLOW_TO_IMPORT} if m in sys.modules] or ''))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip() == ""


def test_no_home_paths():
    none_of(fault for name, text in tracked_texts().items() for fault in home_path_faults(name, text))


def test_notebooks():
    none_of(fault for name, notebook in NOTEBOOKS.items() for fault in notebook_faults(name, notebook))
    none_of(copy_faults(NOTEBOOKS))


# Each check fails on a bad sample


@pytest.mark.parametrize(
    "check, name, text",
    [
        (direction_faults, "config", "from rtl_core.results import Record"),
        (direction_faults, "config", "def f():\n    import rtl_core.results"),
        (direction_faults, "experiments", "from rtl_core import analysis"),
        (direction_faults, "analysis/curves", "from rtl_core.experiments import run"),
        (direction_faults, "scoring", "from rtl_core import run"),
        (direction_faults, "scoring", "from . import results"),
        (direction_faults, "pretrain/domain", "from rtl_core.pretrain.word2vec import train"),
        (direction_faults, "utils", ""),
        (slow_import_faults, "pretrain/word2vec", "import gensim.models"),
        (slow_import_faults, "notebook", "if True:\n    from IPython.display import display"),
        (size_faults, "batches", "x = 1\n" * 301),
        (size_faults, "batches", "def f():\n" + "    x = 1\n" * 40),
        (size_faults, "batches", "def f(self, a, b, c, *, d, e, f, g): pass"),
        (size_faults, "batches", "def f():\n for a in b:\n  if a:\n   with a:\n    while a: pass"),
        (docstring_faults, "batches", "x = 1"),
        (docstring_faults, "batches", '"""Text."""\ndef f(): pass'),
        (docstring_faults, "batches", '"""Text."""\nclass _A:\n    def f(self): pass'),
        (home_path_faults, "README.md", "\nsee /" + "home/ann/study"),
        (home_path_faults, "README.md", "see C:\\" + "Users\\ann"),
    ],
)
def test_bad_code_is_found(check, name, text):
    assert len(check(name, text)) == 1


def test_good_code_passes():
    good = '"""Text."""\n\ndef f(self, a, b, c, d, e, f):\n    """Returns a."""\n'
    good += "    if a: pass\n    elif b: pass\n    elif c: pass\n    elif d: pass\n    else: pass\n"
    good += "    # a comment\n" * 50 + "    import gensim\n    from rtl_core.config import identity\n"
    assert [fault for check in PER_MODULE for fault in check("results", good)] == []


def test_budget_counts():
    assert len(budget_faults({"batches": "def f():\n" + "    x = 1\n" * BUDGET["core"]})) == 2
    assert (
        len(budget_faults({"figures": "x = 1\n" * (BUDGET["figures and shell"] - 1) + "def f(): pass\n" * 2}))
        == 1
    )
    assert budget_faults({"figures": '"""A\nB"""\n\n# c\ndef f(): pass\n'}) == []


def made_notebook(source="x = 1", count=1, **output):
    cell = nbformat.v4.new_code_cell(source, execution_count=count)
    cell.outputs = [nbformat.v4.new_output(**output)] if output else []
    return nbformat.v4.new_notebook(cells=[cell])


IMAGE = {"image/png": "aaaa", "text/plain": "A bar per arm."}


@pytest.mark.parametrize(
    "notebook",
    [
        made_notebook(count=2),
        made_notebook(output_type="error", ename="E", evalue="", traceback=[]),
        made_notebook(output_type="stream", name="stderr", text="warning"),
        made_notebook(output_type="stream", name="stdout", text="saved to /" + "tmp/x"),
        made_notebook("open('/" + "usr/x')"),
        made_notebook("x = 1\n" * 6),
        made_notebook("x = '" + "a" * 80 + "'"),
        made_notebook(output_type="display_data", data=IMAGE),
        made_notebook(
            output_type="display_data",
            data={**IMAGE, "text/plain": "<Figure size 1x1>"},
            metadata={"image/png": {"alt": "A bar per arm."}},
        ),
        made_notebook(output_type="stream", name="stdout", text="a" * 600_000),
    ],
)
def test_bad_notebook_is_found(notebook):
    assert len(notebook_faults("n", notebook)) == 1


def test_notebook_cell_limit():
    assert notebook_faults("n", made_notebook("x = 1\n" * 31)) == [
        "n: a cell is over 30 lines",
        "n: median cell is over 5 lines",
    ]


def test_good_notebook_passes():
    alt = {"image/png": {"alt": "A bar per arm."}}
    good = made_notebook(output_type="display_data", data=IMAGE, metadata=alt)
    good.cells.append(nbformat.v4.new_markdown_cell("![arms](arms.png)"))
    assert notebook_faults("n", good) == []


def test_copies_are_found():
    once, again = made_notebook("def mine(): pass"), made_notebook("%time 1\nclass mine: pass")
    assert copy_faults({"a": once}) == []
    assert copy_faults({"a": once, "b": again}) == ["b and a both define mine"]
    assert copy_faults({"a": made_notebook("def identity(): pass")}) == ["a redefines identity of rtl_core"]
    assert copy_faults({"a": made_notebook("run = 3")}) == ["a redefines run of rtl_core"]
