"""The embedded default corpus: prose from the docstrings of the packages that this project depends on."""

import ast
import gc
import inspect
import os
import re
import warnings
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from rtl_core.corpora.corpus import SPLITS, Corpus, Document
from rtl_core.corpora.sources import source
from rtl_core.corpora.text import drop_near_duplicates, paragraphs_of, split_by_hash
from rtl_core.storage import StudyError, say

PIECE = 1000  # tokens of a document at most
SHORTEST = 50  # tokens of a document at least
SHARES = {"test": 0.085, "valid": 0.055}  # of modules

_ADD_DOC = re.compile(r"_?add_(?:docstr|newdoc)")
_MARKUP = (  # the sign that makes it worth looking, what to replace, by what
    ("`", re.compile(r"(?::[\w:+-]+:)?`+[~.!]*([^`<]*?)(?:\s*<[^`>]*>)?`+_{0,2}"), r"\1"),  # :role:`x`, ``x``
    ("*", re.compile(r"(?<![\w*])\*{1,2}(?=\S)([^*\n]+)(?<=\S)\*{1,2}(?![\w*])"), r"\1"),  # *x*, **x**
    ("]_", re.compile(r"\s*\[[\w#*]+\]_"), ""),  # footnotes [1]_
    ("::", re.compile(r"::[ \t]*$", re.M), ":"),  # announces a block of code
)
# What ends a paragraph and is itself no prose. The description after a parameter's name and type stays.
_BOUNDARY = re.compile(
    r"^(?:[ \t]*\n"  # a blank line
    r"|[ \t]*(?:[-*+•]|\(?(?:\d{1,2}|[a-z])[.)])[ \t]+(?=\S)"  # the bullet or number of a list item
    r"|.*\n[ \t]*([-=~^*#\"'+`])\1{2,}[ \t]*$"  # a title and its underline
    r"|([ \t]*)[*\w., ]+ ?:(?: .*)?$(?=\n\2[ \t]+\S)"  # name : type, then an indented description
    r"|[ \t]*[\w.]+ : (?=\S)"  # name : description
    r"|[ \t]+[*\w.,]+(?: ?\([^)\n]*\))?:[ \t]+(?=\S)"  # name (type): description
    r"|[ \t]*:\w+[^:\n]*:"  # :param name:
    r"|[ \t]*\w+:[ \t]*$"  # Returns:
    r"|[ \t]*\.\. [\w-]+:.*$"  # a directive
    r"|(?=[ \t]*>>>))",  # an example
    re.M,
)
_NOT_PROSE = re.compile(
    r"^\s*>>>|^\s*\.\. |://|[-=+~^]{4,}|\\[A-Za-z]|\$|[_^]\{|\{%"  # examples, references, tables, formulas
    r"|^\s*(?:@|def |class |import |from \S+ import )",  # code
    re.M,
)
_WORD = re.compile(r"""(?<!\S)[("']*[A-Za-z][A-Za-z'-]*[.,;:!?)"']*(?!\S)""")


def is_prose(block: str) -> bool:
    """Returns whether six or more words, and six in ten, are alphabetic, and nothing is code or a formula."""
    alphabetic = len(_WORD.findall(block))
    return alphabetic >= 6 and alphabetic >= 0.6 * len(block.split()) and not _NOT_PROSE.search(block)


def prose_of(docstring: str) -> list[str]:
    """Returns the paragraphs of prose in a docstring, without markup; code, formulas, tables are left out."""
    for sign, pattern, plain in _MARKUP:
        if sign in docstring:
            docstring = pattern.sub(plain, docstring)
    blocks = _BOUNDARY.sub("\0", docstring).split("\0")
    return [p for block in blocks if is_prose(block) for p in paragraphs_of(block)]


def statements_of(tree: ast.Module):
    """Yields every statement in the order of the source; expressions are not entered, for speed."""
    todo = [tree]
    while todo:
        node = todo.pop()
        yield node
        for name in ("cases", "finalbody", "orelse", "handlers", "body"):
            todo += reversed(getattr(node, name, ()))


def docstrings_of(source: str):
    """Yields the docstrings in Python source; nothing is imported or run.

    With them go attributes' docstrings, long strings with a name (docstrings to be shared) and the strings in
    calls of add_newdoc, which document compiled functions. Raises: SyntaxError or ValueError.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's escapes
        tree = ast.parse(source)
    for statement in statements_of(tree):
        match getattr(statement, "value", None):
            case ast.Constant(str(text)) if isinstance(statement, ast.Expr) or "\n" in text:
                yield inspect.cleandoc(text)
            case ast.Call(ast.Name(name) | ast.Attribute(attr=name)) as call if _ADD_DOC.match(name):
                constants = (part.value for part in ast.walk(call) if isinstance(part, ast.Constant))
                yield from (inspect.cleandoc(text) for text in constants if isinstance(text, str))


def read_modules(paths: list[str]) -> list[list[str] | None]:
    """Returns the prose of each module, None where it is not UTF-8 or not Python."""
    results = []
    gc.disable()  # a syntax tree is millions of objects without a cycle
    for path in paths:
        try:
            source = Path(path).read_text(encoding="utf-8")
            texts = docstrings_of(source) if '"""' in source or "'''" in source else ()
            results.append([paragraph for text in texts for paragraph in prose_of(text)])
        except (SyntaxError, ValueError, OSError, RecursionError):
            results.append(None)
    gc.enable()
    return results


def pieces_of(paragraphs: list[str]) -> list[list[str]]:
    """Returns paragraphs in pieces of at most PIECE tokens (a longer paragraph stays whole); tiny ones go."""
    pieces, sizes = [], []
    for paragraph in paragraphs:
        n_tokens = len(paragraph.split()) + paragraph.count("\n") + 1
        if not pieces or sizes[-1] + n_tokens > PIECE:
            pieces.append([])
            sizes.append(0)
        pieces[-1].append(paragraph)
        sizes[-1] += n_tokens
    return [piece for piece, size in zip(pieces, sizes) if size >= SHORTEST]


def harvest(modules: list[tuple[str, str, str]], n_workers: int | None = None) -> Corpus:
    """Returns the corpus of `(topic, module, path)` rows; the same for any number of worker processes."""
    from joblib import Parallel, delayed
    from tqdm import tqdm

    chunks = [[path for _, _, path in modules[i : i + 50]] for i in range(0, len(modules), 50)]
    workers = Parallel(n_jobs=n_workers or min(os.cpu_count(), 8), return_as="generator")
    results = workers(delayed(read_modules)(chunk) for chunk in chunks)
    found = [prose for chunk in tqdm(results, "docstrings", len(chunks), disable=None) for prose in chunk]
    seen, documents = set(), []
    for (topic, module, _), paragraphs in zip(modules, found):
        fresh = [p for p in dict.fromkeys(paragraphs or ()) if p not in seen]
        seen.update(fresh)
        split = split_by_hash(module, SHARES)
        pieces = pieces_of(fresh)[: None if split == "train" else 1]
        documents += [Document(f"{module}:{n}", topic, split, tuple(piece)) for n, piece in enumerate(pieces)]
    documents, dropped = drop_near_duplicates(documents)
    report = {"modules": len(modules), "unreadable": found.count(None), "near_duplicates": dropped}
    return Corpus("docstrings", documents, report=report)


def installed_versions() -> dict[str, str | None]:
    """Returns the installed version of every distribution of the corpus, None where there is none."""
    versions = {}
    for pin in source("docstrings")["distributions"]:
        name = pin.partition("==")[0]
        try:
            versions[name] = metadata.version(name).partition("+")[0]  # 2.13.0+cpu has the text of 2.13.0
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def topic_modules() -> list[tuple[str, str, str]]:
    """Returns `(topic, module, path)` of the installed modules that sources.toml gives a topic, by name."""
    entry = source("docstrings")
    topics = {prefix: topic for topic, prefixes in entry["topics"].items() for prefix in prefixes}
    excluded = re.compile("|".join(f"(?:^|/){pattern}" for pattern in entry["exclude"]))
    rows = []
    for name, version in installed_versions().items():
        for file in (version and metadata.files(name)) or ():
            path = file.as_posix()
            prefixes = [p for p in topics if path.startswith(p) and path.endswith(".py")]
            if prefixes and not excluded.search(path):
                module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
                rows.append((topics[max(prefixes, key=len)], module, str(file.locate())))
    return sorted(rows, key=lambda row: row[1])


def read_docstrings() -> Corpus:
    """Returns the corpus harvested from the installed packages.

    Its report names the versions that are not as pinned. Raises: StudyError when no package is installed.
    """
    found = installed_versions()
    if not any(found.values()):
        raise StudyError("no package of the docstrings corpus is installed; run `pip install -e .` first.")
    pins = dict(pin.split("==") for pin in source("docstrings")["distributions"])
    others = [f"{name} {found[name] or 'missing'}, not {v}" for name, v in pins.items() if v != found[name]]
    say("harvesting docstrings of the installed packages, once; about half a minute")
    corpus = harvest(topic_modules())
    if others:
        say(f"warning: docstrings is another text than published: {'; '.join(others)}")
    read = {split: corpus.n_tokens(split) for split in SPLITS}
    return replace(corpus, report=corpus.report | {"read": read, "versions": others})
