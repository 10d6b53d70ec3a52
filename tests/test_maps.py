"""Maps, and the figures of the notebooks: what is drawn is what was given, and words say the same."""

import numpy as np
import pandas as pd
import pytest

from rtl_core import figures, notebook
from rtl_core.embeddings import Embeddings
from rtl_core.maps import pca_map
from rtl_core.storage import StudyError

WORDS = tuple("abcdefghij")
ROWS = [{"epoch": i + 1, "train_loss": 5.0 - i, "valid_loss": 5.5 - i / 2} for i in range(3)]


def embeddings(dim=8):
    return Embeddings(WORDS, np.random.default_rng(0).standard_normal((10, dim)).astype(np.float32))


def test_a_plane_is_mapped_without_loss():
    turn = 4.5 * np.linspace(0, 1, 10) ** 1.4  # no two distances are the same
    flat = np.stack([np.cos(turn), np.sin(turn), 0 * turn], axis=1).astype(np.float32)
    frame = pca_map(Embeddings(WORDS, flat), WORDS)
    assert frame.attrs == {"explained": pytest.approx(1), "recall": pytest.approx(1)}
    steps = (np.linalg.norm(np.diff(table, axis=0), axis=1) for table in (flat, frame[["x", "y"]]))
    assert np.allclose(*steps, atol=1e-5)


def test_a_map_says_how_little_it_shows():
    frame = pca_map(embeddings(), WORDS)
    assert 0.25 < frame.attrs["explained"] < 0.7 and 0.4 < frame.attrs["recall"] < 1
    said = figures.describe_map(frame)
    assert f"{frame.attrs['explained']:.0%} of the variance" in said and "no measurement" in said


def test_a_map_of_too_few_or_unknown_words_is_refused():
    with pytest.raises(StudyError, match="needs 7 words or more; found 3"):
        pca_map(embeddings(), "abc")
    with pytest.raises(StudyError, match="no vector for 'zz'"):
        pca_map(embeddings(), (*WORDS, "zz"))


def test_words_stand_where_the_map_has_them_and_groups_have_marks():
    frame = pca_map(embeddings(), WORDS)
    ax = figures.plot_map(frame, groups={word: "first" if word < "f" else "second" for word in WORDS})
    assert {text.get_text() for text in ax.texts} == set(WORDS)
    assert {tuple(text.xy) for text in ax.texts} == set(zip(frame["x"], frame["y"]))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["first", "second"]
    assert len({line.get_marker() for line in ax.lines}) == 2


def test_ranks_fall_and_are_described():
    counts = [1, 100, 10, 9]
    line = figures.plot_ranks(counts).lines[0]
    assert line.get_ydata().tolist() == [100, 10, 9, 1] and line.get_xdata().tolist() == [1, 2, 3, 4]
    said = figures.describe_ranks(counts)
    assert "4 words, from 100 occurrences down to 1" in said and "50% of the words" in said
    assert "The 1 most frequent" in said  # 100 of 120


def test_history_shows_both_losses():
    ax = figures.plot_history(ROWS)
    assert [line.get_ydata().tolist() for line in ax.lines] == [[5, 4, 3], [5.5, 5, 4.5]]
    assert "training goes from 5.00 to 3.00, validation from 5.50 to 4.50" in figures.describe_history(ROWS)
    assert "epoch 3 with 4.50" in figures.describe_history(ROWS)


def test_bars_are_as_long_as_their_numbers():
    values = pd.Series({"ours": 0.5, "shuffled": 0.25})
    ax = figures.plot_bars(values, xlabel="accuracy", line=0.2)
    assert [bar.get_width() for bar in ax.patches] == [0.5, 0.25]
    assert "baseline 0.2" in [text.get_text() for text in ax.texts]
    said = figures.describe_bars(values, xlabel="accuracy", line=0.2)
    assert said == "Bars of accuracy: ours 0.5; shuffled 0.25. A dashed line marks the baseline, 0.2."


def test_shares_are_written_where_they_are_large():
    shares = pd.DataFrame([[0.95, 0.05], [0.4, 0.6]], ["graph", "node"], ["graphs", "parsing"])
    shares = shares.rename_axis(index="word", columns="domain")
    ax = figures.plot_shares(shares)
    assert [text.get_text() for text in ax.texts] == ["95", "40", "60"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("domain", "word")
    assert figures.describe_shares(shares).endswith("graph: graphs 95%; node: parsing 60%.")


def test_neighbours_of_each_table():
    table = np.array([[1, 0], [1, 0.1], [0, 1]], dtype=np.float32)
    both = {"a": Embeddings(("x", "y", "z"), table), "b": Embeddings(("y", "z"), table[1:])}
    found = notebook.neighbours(both, ("x",), k=1)
    assert found.index.name == "word" and found.loc["x"].to_dict() == {"a": "y", "b": "-"}


@pytest.mark.parametrize("size, n_tokens", [("smoke", 60_000), ("quick", None)])
def test_a_notebook_reads_a_part_at_smoke_size(size, n_tokens, docstrings_corpus, monkeypatch):
    monkeypatch.setenv("RTL_SIZE", size)
    found, whole = notebook.corpus().n_tokens("train"), docstrings_corpus.n_tokens("train")
    assert n_tokens <= found < n_tokens + 1_000 if n_tokens else found == whole
