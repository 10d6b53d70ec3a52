"""Public corpora from their canonical files (see data/sources.toml): WikiText-2, AG News, 20 Newsgroups."""

import csv
import html
import io
import re
import tarfile
import zlib
from pathlib import Path

from rtl_core.corpora.corpus import SPLITS, Corpus, Document
from rtl_core.corpora.text import drop_near_duplicates, paragraphs_of, read_text, split_by_hash
from rtl_core.storage import StudyError

VALID_SHARE = {"valid": 0.1}  # of the training documents, where a corpus has no validation split of its own
AG_DOMAINS = {"1": "world", "2": "sports", "3": "business", "4": "science-technology"}

_HEADING = re.compile(r" = (?!= ).*(?<! =) = ?")
_BARE_ENTITY = re.compile(r"(?<![&\w])(#\d+|amp|gt|hellip|lt|[lr][ds]quo|[mn]dash|nbsp|quot);")  # no &
_CONTRACTION = re.compile(r"(?<=\w) ['’](?=(?:s|t|re|ve|ll|d|m)\b)")
_TAG = re.compile(r"<[^<>]*>")
_SIGNATURE = re.compile(r"^[-=_*]{2,} *\n(?:.*\n){0,12}.*\Z", re.M)  # after a rule, twelve lines at most
_NOT_OWN_WORDS = re.compile(
    r"^\s{0,3}(?:\w{0,4}[>|}]|:)"  # quoted lines
    r"|^\s*In (?:article|message)\b|\b(?:writes|wrote|says|said)(?: in \S+)? ?: *$"  # who is quoted
    r"|^(?:Distribution|From|Keywords|Lines|Newsgroups|Organization|References|Subject|Summary|[A-Z]\w+-\S+):"
    r"|\S{45}"  # an encoded file
)
_SIGN = re.compile(r"[^\w\s]")


def read_wikitext(files: dict[str, Path]) -> Corpus:
    """Returns WikiText, an article a document, a line a paragraph; a title between blank lines begins one."""
    documents, types, read = [], {"<unk>", "<eos>"}, {}
    for split in SPLITS:
        lines = read_text(files[f"wiki.{split}.tokens"]).removesuffix("\n").split("\n")
        blank = [not line.strip() for line in ("", *lines, "")]  # blank[i] is of the line before lines[i]
        titles = [i for i, line in enumerate(lines) if _HEADING.fullmatch(line) and blank[i] and blank[i + 2]]
        starts = [0, *titles[1:]]  # what comes before the first title belongs to the first article
        for n, (start, end) in enumerate(zip(starts, [*titles[1:], len(lines)])):
            text = "\n".join(lines[start:end])
            documents.append(Document(f"{split}-{n:03}", None, split, paragraphs_of(text, "whitespace")))
        read[split] = sum(len(line.split()) + 1 for line in lines)
        types.update(word for line in lines for word in line.split())
    return Corpus("wikitext-2", tuple(documents), "whitespace", {"read": read | {"types": len(types)}})


def _labelled(name: str, rows) -> Corpus:
    """Returns the corpus of `(id, domain, split, text)` rows; part of train becomes validation."""
    documents, read = [], dict.fromkeys(("train", "test"), 0)
    for identifier, domain, split, text in rows:
        read[split] += 1
        paragraphs = paragraphs_of(text)
        if paragraphs:
            split = split_by_hash(identifier, VALID_SHARE) if split == "train" else split
            documents.append(Document(identifier, domain, split, paragraphs))
    report = {"read": read, "without_text": sum(read.values()) - len(documents)}
    documents, report["near_duplicates"] = drop_near_duplicates(documents)
    return Corpus(name, documents, report=report)


def clean_news(text: str) -> str:
    r"""Returns AG News text without the residue of HTML.

    >>> clean_news(r"the firm #39;s &lt;b&gt;second\team&lt;/b&gt;")
    "the firm's second team"
    """
    text = html.unescape(_BARE_ENTITY.sub(r"&\1;", html.unescape(html.unescape(text))))
    return _CONTRACTION.sub("'", _TAG.sub("", text).replace("\\", " "))


def read_ag_news(files: dict[str, Path]) -> Corpus:
    """Returns AG News: a title and a description a document, four domains; a part of train.csv will do."""

    def rows():
        for split in ("train", "test"):
            path = files[f"{split}.csv"]
            reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
            try:
                for number, (label, title, description) in enumerate(reader):
                    text = f"{clean_news(title)}\n\n{clean_news(description)}"
                    yield f"{split}-{number:06}", AG_DOMAINS[label], split, text
            except (ValueError, KeyError, csv.Error) as error:
                raise StudyError(
                    f"{path}, line {reader.line_num:,}: not `class,title,description` with a class of 1 to 4 "
                    f"({error}). The file was probably cut short; run `rtl data get ag-news`."
                ) from error

    return _labelled("ag-news", rows())


def clean_post(post: str) -> str:
    """Returns what the author of a Usenet post wrote: no headers, quotations, signature or encoded files."""
    _, _, body = post.replace("\r\n", "\n").partition("\n\n")
    lines = _SIGNATURE.sub("", body).split("\n")
    noise = (len(_SIGN.findall(line)) > max(5, len(line) / 3) for line in lines)  # tables, drawings
    return "\n".join("" if bad or _NOT_OWN_WORDS.search(line) else line for line, bad in zip(lines, noise))


def read_newsgroups(files: dict[str, Path]) -> Corpus:
    """Returns 20 Newsgroups by date: 20 domains, the canonical test split."""
    (path,) = files.values()

    def rows():
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.isfile():
                    folder, group, number = member.name.split("/")[-3:]
                    post = archive.extractfile(member).read().decode("latin-1")
                    yield f"{group}/{number}", group, folder.rpartition("-")[2], clean_post(post)

    try:
        return _labelled("20newsgroups", sorted(rows()))
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError, KeyError) as error:
        raise StudyError(
            f"{path} is not the whole archive of 20 Newsgroups ({error}). Delete it and run "
            "`rtl data get 20newsgroups`."
        ) from error


READERS = {"wikitext-2": read_wikitext, "ag-news": read_ag_news, "20newsgroups": read_newsgroups}
