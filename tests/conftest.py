"""What all tests share: folders of their own, no network, one thread, and two corpora."""

import os
import shutil
import socket
import tempfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
DOMAINS = {
    "kitchen": ("cook", "knife", "soup", "oven", "stirs", "bakes", "warm", "salty"),
    "harbour": ("sailor", "anchor", "ferry", "wharf", "moors", "paints", "rusty", "distant"),
    "school": ("teacher", "pupil", "lesson", "slate", "reads", "explains", "patient", "clever"),
}


def pytest_configure(config):
    """Notebooks run in processes of their own, which no fixture reaches: they get their folders from here."""
    if hasattr(config, "workerinput"):  # one of several test processes has them from the first
        return
    home = Path(tempfile.mkdtemp(prefix="rtl-tests-"))
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    os.environ.update(RTL_CACHE_DIR=str(home / "cache"), RTL_RESULTS_DIR=str(home / "results"))
    os.environ.setdefault("RTL_SIZE", "smoke")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # test processes and kernels share the cores
    reference = ROOT / "results" / "reference"
    if reference.is_dir():
        shutil.copytree(reference, home / "results" / "reference")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Each test writes its models and records into a fresh folder, never into the checkout."""
    monkeypatch.setenv("RTL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("RTL_RESULTS_DIR", str(tmp_path / "results"))
    monkeypatch.setenv("MPLBACKEND", "Agg")


@pytest.fixture
def closed_figures():
    """Closes every figure that a test has drawn."""
    yield
    from matplotlib import pyplot as plt

    plt.close("all")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A test that reaches beyond this machine fails at once, instead of passing only online."""
    connect = socket.socket.connect

    def local_only(self, address):
        remote = self.type == socket.SOCK_STREAM and isinstance(address, tuple)
        if remote and address[0] not in ("127.0.0.1", "::1", "localhost", socket.gethostname()):
            raise AssertionError(f"tests are offline, but this one connects to {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


def _sentence(rng, words):
    """`the cook stirs the warm soup .`, now and then with a place; four nouns, two verbs, two adjectives."""
    subject, thing, place = rng.choice(words[:4], 3)
    verb, adjective = rng.choice(words[4:6]), rng.choice(words[6:])
    words = ["the", subject, verb, rng.choice(["the", "a"]), adjective, thing]
    if rng.random() < 0.4:
        words += ["near", "the", place]
    return " ".join([*words, "."])


@pytest.fixture(scope="session")
def tiny_corpus():
    """40 documents of about 100 tokens in three domains, 28 / 6 / 6 in the splits; learnt in seconds."""
    from rtl_core.corpora.corpus import Corpus, Document

    rng = np.random.default_rng(0)
    documents = []
    for split, count in (("train", 28), ("valid", 6), ("test", 6)):
        for i in range(count):
            domain = list(DOMAINS)[i % len(DOMAINS)]
            paragraphs = tuple("\n".join(_sentence(rng, DOMAINS[domain]) for _ in range(4)) for _ in range(3))
            documents.append(Document(f"{split}-{i}", domain, split, paragraphs))
    return Corpus("tiny", tuple(documents), tokenizer="whitespace")


@pytest.fixture(scope="session")
def _harvest():
    """The embedded corpus, harvested once into the session's cache, which the notebooks then use too."""
    from rtl_core.corpora import load_corpus

    return load_corpus("docstrings"), Path(os.environ["RTL_CACHE_DIR"])


@pytest.fixture
def docstrings_corpus(_harvest, own_folders):
    """The embedded corpus; in this test load_corpus("docstrings") finds it in the cache."""
    corpus, cache = _harvest
    shutil.copytree(cache, os.environ["RTL_CACHE_DIR"])
    return corpus
