"""data/sources.toml: what each corpus and labelled set is, where its files lie, how they are fetched."""

import hashlib
import os
import sys
import tomllib
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from rtl_core.storage import StudyError, cache_dir, file_sha256, project_root, unknown


@cache
def all_sources() -> dict[str, dict]:
    """Returns data/sources.toml, an entry a corpus or labelled set. Raises: StudyError when it is missing."""
    path = project_root() / "data" / "sources.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(
            f"{path} is missing. It lists the corpora and belongs to the checkout: install the project "
            "from its folder with `pip install -e .`, or run the command there."
        ) from None


def source(name: str) -> dict:
    """Returns the entry of one corpus or labelled set. Raises: StudyError with the nearest valid names."""
    if name not in all_sources():
        raise unknown("corpus", name, (*all_sources(), "topicworld:SETTINGS", "folder:PATH"))
    return all_sources()[name]


def search_folders(name: str) -> list[Path]:
    """Returns the folders where the files of a corpus may lie, in the order of search."""
    roots = [Path(os.environ["RTL_DATA_DIR"])] if os.environ.get("RTL_DATA_DIR") else []
    return [root / folder for root in (*roots, cache_dir() / "raw") for folder in source(name)["folders"]]


def raw_files(name: str) -> dict[str, Path]:
    """Returns the raw files by their name in sources.toml, all from one folder. Nothing is downloaded.

    A pattern there (dep/*.conllu) stands for all files that match. Raises: StudyError when they are not at
    hand: what to run, or where to get them and where to lay them.
    """
    entry = source(name)
    for folder in search_folders(name):
        found = [sorted(path for path in folder.glob(file) if path.is_file()) for file in entry["files"]]
        if all(found):
            return {path.relative_to(folder).as_posix(): path for paths in found for path in paths}
    looked = ", ".join(str(folder) for folder in search_folders(name))
    get = (
        f"Run `rtl data get {name}` to download, or" if "downloads" in entry else f"Go to {entry['home']} and"
    )
    raise StudyError(
        f"{name} is not at hand: {', '.join(entry['files'])} not found together in {looked}. {get} lay them into "
        f"{entry['folders'][0]}/ in RTL_DATA_DIR, which names a folder of yours, or into the one just looked in."
    )


def missing(name: str) -> str:
    """Returns what to do where the raw files of a corpus or labelled set are not at hand, "" where they are."""
    try:
        raw_files(name)
    except StudyError as error:
        return str(error)
    return ""


def checked_files(name: str) -> tuple[dict[str, Path], dict[str, str]]:
    """Returns the raw files of a corpus or labelled set and their sha256.

    The files of a pattern are checked together: sha256 over their own, in the order of their names.
    Raises: StudyError when a file is empty or is none of the known ones ("any" in sources.toml: not checked).
    """
    files = raw_files(name)
    found = {file: file_sha256(path) for file, path in files.items()}
    for pattern, known in source(name)["files"].items():
        matching = [file for file in files if fnmatchcase(file, pattern)]
        where = files[matching[0]].parent / Path(pattern).name
        if not all(files[file].stat().st_size for file in matching):
            raise StudyError(f"{where} is empty (0 bytes); put the whole file in its place.")
        sums = [found[file] for file in matching]
        total = sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()
        if total not in known and "any" not in known:
            raise StudyError(
                f"{where} is damaged or another version: its sha256 is {total[:16]}…, expected "
                f"{' or '.join(k[:16] + '…' for k in known)}. Delete it and run `rtl data get {name}`."
            )
    return files, found


def download(name: str) -> Path:
    """Returns the folder into which the files of a public corpus were downloaded and checked by sha256.

    Raises: StudyError when the home cannot be reached or serves something else.
    """
    import pooch

    folder = cache_dir() / "raw" / source(name)["folders"][0]
    for item in source(name)["downloads"]:
        unzip = pooch.Unzip(members=item["members"], extract_dir="..") if "members" in item else None
        url, checksum = item["url"], f"sha256:{item['sha256']}"
        try:
            pooch.retrieve(url, checksum, item["file"], folder, unzip, progressbar=sys.stderr.isatty())
        except (OSError, ValueError) as error:  # requests' errors are OSErrors, a wrong checksum a ValueError
            raise StudyError(
                f"could not download {url}: {error}. Nothing was kept; try again later, or lay "
                f"{', '.join(source(name)['files'])} into {folder} by hand."
            ) from error
    return folder


def differences(found) -> list[str]:
    """Returns a phrase for every count of a corpus or labelled set that is not as sources.toml expects.

    A folder has no expectations.
    """
    expected = all_sources().get(found.name, {}).get("expected", {})
    read = found.report.get("read", {})
    return [f"{key}: {read[key]:,} where {n:,} are expected" for key, n in expected.items() if read[key] != n]
