"""Packages, Makefile and README: three lists of packages agree, set-up teaches, README's commands work."""

import ast
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from rtl_core import compare, load_results, report
from rtl_core.__main__ import _parser, main
from rtl_core.studies import NAMED, OVERLAPS, STUDY_SIZES

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ENVIRONMENT = (ROOT / "environment.yml").read_text(encoding="utf-8")
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONDA_NAMES = {"torch": "pytorch"}
IMPORT_NAMES = {"sklearn": "scikit-learn", "umap": "umap-learn", "IPython": "ipython"}
IMPORT_NAMES |= {"jscatter": "jupyter-scatter", "embedding_atlas": "embedding-atlas"}
APART = ("atlas",)  # extras that are no part of the environment: their packages do not go with the lock
OUTER = ("MAKEFLAGS", "MAKELEVEL", "VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "RTL_DATA_DIR")
OF_TORCH = ("nvidia-", "cuda-", "triton")  # builds of torch for a GPU pin these themselves


# Lists of packages


def declared(without: tuple[str, ...] = APART) -> dict[str, SpecifierSet]:
    """Every dependency of pyproject.toml, extras included, with its range."""
    extras = PROJECT["project"]["optional-dependencies"].items()
    lines = [
        *PROJECT["project"]["dependencies"],
        *(line for n, e in extras if n not in without for line in e),
    ]
    return {canonicalize_name(r.name): r.specifier for r in map(Requirement, lines)}


def of_conda(text: str) -> dict[str, SpecifierSet]:
    entries = [Requirement(entry) for entry in yaml.safe_load(text)["dependencies"]]
    return {entry.name: entry.specifier for entry in entries}


def uncommented(text: str) -> list[str]:
    entries = re.findall(r"^  - .*$", text.partition("dependencies:")[2], re.M)
    return [entry for entry in entries if not re.search(r" # \w", entry)]


def locked(text: str) -> list[Requirement]:
    return [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]


def lock_faults(requirements: list[Requirement], wanted: dict[str, SpecifierSet]) -> list[str]:
    faults = [f"{r} is not exact" for r in requirements if not re.fullmatch(r"==[\w.]+", str(r.specifier))]
    versions = {canonicalize_name(r.name): str(r.specifier).lstrip("=<>~") for r in requirements}
    for name, wanted_range in wanted.items():
        if versions.get(name) not in wanted_range if name in versions else True:
            faults.append(f"{name}{wanted_range}: the lock has {versions.get(name)}")
    return faults


def installed_closure(roots) -> set[str]:
    """Names of everything that `roots` need in this environment, themselves included."""
    seen, todo = set(), list(roots)
    while todo:
        name = canonicalize_name(todo.pop())
        if name not in seen and not name.startswith(OF_TORCH):
            seen.add(name)
            needs = map(Requirement, importlib.metadata.requires(name) or [])
            todo += [n.name for n in needs if not n.marker or n.marker.evaluate({"extra": ""})]
    return seen


def test_conda_and_pyproject_agree():
    expected = {CONDA_NAMES.get(name, name): wanted for name, wanted in declared().items()}
    expected["python"] = SpecifierSet(PROJECT["project"]["requires-python"])
    expected |= {r.name: r.specifier for r in map(Requirement, PROJECT["build-system"]["requires"])}
    assert of_conda(ENVIRONMENT) == expected | {"pip": SpecifierSet()}
    assert uncommented(ENVIRONMENT) == []


def test_every_package_says_what_it_is_for():
    assert uncommented("channels:\n  - c\ndependencies:\n  - a # use\n  - b\n") == ["  - b"]
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lines = re.findall(r'^    "[\w-]+[>=~<].*$', text, re.M)
    assert len(lines) == len(declared()) and [line for line in lines if "# " not in line] == []


def test_lock_is_exact_and_within_the_ranges():
    assert lock_faults(locked(LOCK), declared()) == []
    assert "torch==2.13.0\n" in LOCK


def test_lock_faults_are_found():
    wanted = {"torch": SpecifierSet(">=2.13,<2.14")}
    for bad in ("torch==2.14.0", "torch>=2.13", "numpy==2.4.6", "torch==2.13.*"):
        assert lock_faults(locked(bad), wanted), bad


def test_lock_holds_everything_that_gets_installed():
    names = {canonicalize_name(r.name) for r in locked(LOCK)}
    assert installed_closure(declared()) - names == set()
    assert len(installed_closure(["pandas"])) > 3


def test_every_import_is_declared():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "rtl_core").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    names |= {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module}
    packages = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"rtl_core"}
    assert {"torch", "numpy"} <= packages
    assert {IMPORT_NAMES.get(name, name) for name in packages} - set(declared(without=())) == set()


# Set-up: the Makefile with a python that only notes what it is asked


def shell(command: list[str], cwd, **variables) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if k not in OUTER} | {k: str(v) for k, v in variables.items()}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


def write_script(path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "check out"  # a space in the path
    folder.mkdir()
    for name in ("Makefile", "setup.sh", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def active(tmp_path):
    """An environment whose python notes its arguments in `asked`; its pip fails while `broken` exists."""
    env = tmp_path / "active"
    text = f'echo "$*" >>"{env}/asked"\ncase "$*" in *"pip install"*) [ ! -e "{env}/broken" ] ;; esac'
    write_script(env / "bin" / "python", text)
    return env


def pip_calls(env) -> list[str]:
    return [line for line in (env / "asked").read_text().splitlines() if "pip install" in line]


def test_setup_is_done_once_for_each_lock_and_checkout(checkout, active, tmp_path):
    assert shell(["make", "setup"], checkout, VIRTUAL_ENV=active).returncode == 0
    first = pip_calls(active)
    assert "requirements.lock" in first[0]
    assert first[1].endswith("--no-deps --no-build-isolation --editable .")
    assert not (checkout / ".venv").exists()
    shell(["make", "setup"], checkout, VIRTUAL_ENV=active)
    assert pip_calls(active) == first
    (checkout / "requirements.lock").write_text("torch==2.13.1\n")
    shell(["make", "setup"], checkout, VIRTUAL_ENV=active)
    assert pip_calls(active) == first * 2
    shutil.copytree(checkout, tmp_path / "other")
    shell(["make", "setup"], tmp_path / "other", VIRTUAL_ENV=active)
    assert pip_calls(active) == first * 3


def test_failed_setup_says_so_and_is_repeated(checkout, active):
    (active / "broken").touch()
    failed = shell(["make", "test"], checkout, VIRTUAL_ENV=active)
    assert failed.returncode != 0 and "run make again: it goes on where it stopped" in failed.stderr
    assert "pytest" not in (active / "asked").read_text()
    (active / "broken").unlink()
    assert shell(["make", "test"], checkout, VIRTUAL_ENV=active).returncode == 0
    assert "-m pytest" in (active / "asked").read_text()


def test_conda_keeps_its_own_packages_and_its_base_is_left_alone(checkout, active):
    (active / "conda-meta").mkdir()
    shell(["make", "setup"], checkout, CONDA_PREFIX=active, CONDA_DEFAULT_ENV="rtl-core")
    assert [call.split("--editable ")[1] for call in pip_calls(active)] == [".[test,cluster]"]
    listed = shell(["make", "-n", "setup"], checkout, CONDA_PREFIX=active, CONDA_DEFAULT_ENV="base")
    assert '".venv"' in listed.stdout


def test_unfit_python_is_named(checkout, tmp_path):
    for name in ("python3.11", "python3.12", "python3.13", "python3"):
        write_script(tmp_path / "bin" / name, 'if [ "$1" = -V ]; then echo Python 3.9.2; else exit 1; fi')
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    failed = shell(["make", "study"], checkout, PATH=path)
    assert failed.returncode != 0
    assert "Python 3.11, 3.12 or 3.13 is needed, but python3 is: Python 3.9.2." in failed.stderr
    failed = shell(["make", "study"], checkout, VIRTUAL_ENV=tmp_path / "gone")
    assert "gone has no Python" in failed.stderr and "Deactivate it" in failed.stderr


def test_ci_passes_on_the_data_only_where_it_is(tmp_path):
    script = tmp_path / "main" / ".ci" / "run"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", script)
    write_script(tmp_path / "bin" / "make", 'echo "make $* with ${RTL_DATA_DIR-nothing}"')
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    assert shell([script], tmp_path, PATH=path).stdout == "make test with nothing\n"
    (tmp_path / "shared" / "data").mkdir(parents=True)
    assert shell([script], "/", PATH=path).stdout == f"make test with {tmp_path}/shared/data\n"


# README


def commands(text: str) -> list[str]:
    """Commands in the fenced shell blocks of a page, without prompts, comments and settings before them."""
    blocks = re.findall(r"^```(?:sh|bash|console|shell)\n(.*?)^```", text, re.S | re.M)
    lines = re.split(r"\n|&&", "\n".join(blocks).replace("\\\n", " "))
    words = [shlex.split(line.strip().removeprefix("$ "), comments=True) for line in lines]
    return [re.sub(r"^([A-Z_]+=\S* )+", "", shlex.join(command)) for command in words if command]


def command_fault(command: str) -> str | None:
    """What is wrong with a command, found without running it; a command of an unknown kind is a fault too."""
    program, *arguments = shlex.split(command)
    if program == "make":
        done = shell(["make", "-n", *arguments], ROOT)
        return f"{command}: {done.stderr}" if done.returncode or not arguments else None
    if program == "rtl":
        try:
            _parser().parse_args(arguments)
        except SystemExit as error:
            return f"{command}: the command line does not take it" if error.code else None
        return None
    if program in ("git", "cd", "conda", "pip", "python3", "source"):
        named = [a for a in arguments if re.search(r"\.(yml|lock|toml|txt|py)$", a)]
        missing = [a for a in named if not (ROOT / a).exists()]
        return f"{command}: there is no {missing}" if missing else None
    return f"{command}: this test does not know how to check {program}; teach it"


QUICK = ("rtl doctor", "rtl data list", "rtl report")  # these are run; they read and print
WRITES = ("--write", "--promote")
QUICK_COMMANDS = [c for c in commands(README) if c.startswith(QUICK) and not any(w in c for w in WRITES)]


def test_readme_shows_the_main_commands_first():
    shown = commands(README)
    assert {"make study", "make study SIZE=laptop", "make test", "make lab"} <= set(shown)
    assert "make study" in [c for c in shown if c.split()[0] not in ("git", "cd")][0]


def test_readme_commands_are_valid():
    faults = [fault for fault in map(command_fault, commands(README)) if fault]
    assert not faults, "\n".join(faults)


BAD_COMMANDS = ("make", "make nothing", "rtl stduy", "rtl study --size x", "pip install -r no.lock", "curl x")


@pytest.mark.parametrize("command", BAD_COMMANDS)
def test_bad_commands_are_found(command, capsys):
    page = f"text\n```sh\ncd x && \\\n A=b {command}  # a comment\n\n```\n"
    assert commands(page) == ["cd x", command]
    assert command_fault(command)


@pytest.mark.parametrize("command", QUICK_COMMANDS)
def test_quick_readme_commands_run(command, monkeypatch, capsys):
    monkeypatch.setenv("RTL_RESULTS_DIR", str(ROOT / "results"))
    assert main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out.strip()


def test_readme_python_names_exist():
    import rtl_core as rtl

    trees = [ast.parse(block) for block in re.findall(r"^```python\n(.*?)^```", README, re.S | re.M)]
    nodes = [n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    used = {n.attr for n in nodes if isinstance(n.value, ast.Name) and n.value.id == "rtl"}
    assert {name for name in used if not hasattr(rtl, name)} == set()


def test_command_line_helps():
    done = shell([sys.executable, "-m", "rtl_core", "--help"], ROOT)
    assert done.returncode == 0
    for name in ("data", "pretrain", "run", "study", "score", "report", "doctor"):
        assert f"\n    {name} " in done.stdout


def test_generated_pages_are_fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("RTL_RESULTS_DIR", str(ROOT / "results"))
    contents = report.generated()
    monkeypatch.setattr(report, "generated", lambda: contents)  # made once: it takes half a minute
    assert report.stale_files() == []
    for name in contents:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.setattr(report, "project_root", lambda: tmp_path)
    page = tmp_path / "results" / "README.md"
    page.write_text(page.read_text(encoding="utf-8").replace("1", "2"), encoding="utf-8")
    assert report.stale_files() == [page]


def test_every_committed_record_is_of_a_study(monkeypatch):
    monkeypatch.setenv("RTL_RESULTS_DIR", str(ROOT / "results"))
    committed = load_results("reference")
    of_studies = {record.name for record in committed.of(*STUDY_SIZES, *NAMED).records}
    assert sorted(record.name for record in committed.records if record.name not in of_studies) == []


def test_a_study_of_several_corpora_has_a_figure(monkeypatch, closed_figures):
    monkeypatch.setenv("RTL_RESULTS_DIR", str(ROOT / "results"))
    found = load_results("reference").of("topicworld-overlap")
    ax, words = report.study_figure(STUDY_SIZES["topicworld-overlap"], found, compare(found))
    assert len(ax.get_xticks()) == len(OVERLAPS) and words.startswith(
        "Lines of the effect on test perplexity"
    )
