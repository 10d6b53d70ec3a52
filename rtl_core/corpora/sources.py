"""data/sources.toml: what each corpus is, where its files lie, how they are fetched."""

import os
import sys
import tomllib
from functools import cache
from pathlib import Path

from rtl_core.storage import StudyError, cache_dir, file_sha256, project_root, unknown


@cache
def all_sources() -> dict[str, dict]:
    """Returns data/sources.toml, an entry a corpus. Raises: StudyError when it is missing."""
    path = project_root() / "data" / "sources.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(
            f"{path} is missing. It lists the corpora and belongs to the checkout: install the project "
            "from its folder with `pip install -e .`, or run the command there."
        ) from None


def source(name: str) -> dict:
    """Returns the entry of one corpus. Raises: StudyError with the nearest valid names."""
    if name not in all_sources():
        raise unknown("corpus", name, (*all_sources(), "folder:PATH"))
    return all_sources()[name]


def search_folders(name: str) -> list[Path]:
    """Returns the folders where the files of a corpus may lie, in the order of search."""
    roots = [Path(os.environ["RTL_DATA_DIR"])] if os.environ.get("RTL_DATA_DIR") else []
    return [root / folder for root in (*roots, cache_dir() / "raw") for folder in source(name)["folders"]]


def raw_files(name: str) -> dict[str, Path]:
    """Returns the raw files of a public corpus by file name, all from one folder. Nothing is downloaded.

    Raises: StudyError when they are not at hand: what to run, or where to lay them.
    """
    names = list(source(name)["files"])
    for folder in search_folders(name):
        if all((folder / file).is_file() for file in names):
            return {file: folder / file for file in names}
    looked = ", ".join(str(folder) for folder in search_folders(name))
    raise StudyError(
        f"corpus {name} is not at hand: {', '.join(names)} not found together in {looked}. Run "
        f"`rtl data get {name}` to download, or lay them into {source(name)['folders'][0]}/ in RTL_DATA_DIR."
    )


def checked_files(name: str) -> tuple[dict[str, Path], dict[str, str]]:
    """Returns the raw files of a public corpus and their sha256.

    Raises: StudyError when a file is empty or is none of the known ones ("any" in sources.toml: not checked).
    """
    files = raw_files(name)
    found = {file: file_sha256(path) for file, path in files.items()}
    for file, known in source(name)["files"].items():
        if not files[file].stat().st_size:
            raise StudyError(f"{files[file]} is empty (0 bytes); put the whole file in its place.")
        if found[file] not in known and "any" not in known:
            raise StudyError(
                f"{files[file]} is damaged or another version: its sha256 is {found[file][:16]}…, expected "
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
