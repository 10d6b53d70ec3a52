"""Maps, and the figures of the notebooks: what is drawn is what was given, and words say the same."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from sklearn.manifold import trustworthiness

from rtl_core import figures, maps, notebook
from rtl_core.analysis import geometry
from rtl_core.embeddings import Embeddings
from rtl_core.maps import pca_map
from rtl_core.storage import StudyError

WORDS = tuple("abcdefghij")
ROWS = [{"epoch": i + 1, "train_loss": 5.0 - i, "valid_loss": 5.5 - i / 2} for i in range(3)]


pytestmark = pytest.mark.usefixtures("closed_figures")


def embeddings(dim=8):
    return Embeddings(WORDS, np.random.default_rng(0).standard_normal((10, dim)).astype(np.float32))


def grouped(n=60, dim=6):
    """A table of three domains whose words lie together, and the words with their domain and count."""
    rng, domains = np.random.default_rng(1), np.array(["kitchen", "harbour", "school"])[np.arange(n) % 3]
    centres = {name: 3 * rng.standard_normal(dim) for name in sorted(set(domains))}
    table = np.stack([centres[name] + rng.standard_normal(dim) for name in domains]).astype(np.float32)
    names = [f"w{i}" for i in range(n)]
    frame = pd.DataFrame({"domain": domains, "count": np.arange(n) + 20}, pd.Index(names, name="word"))
    return Embeddings(tuple(names), table), frame


def unit(table):
    return table.centred().normalised().table


def test_a_plane_is_mapped_without_loss():
    turn = 4.5 * np.linspace(0, 1, 10) ** 1.4  # no two distances are the same
    flat = Embeddings(WORDS, np.stack([np.cos(turn), np.sin(turn), 0 * turn], axis=1).astype(np.float32))
    frame = pca_map(flat, WORDS)
    assert (frame["recall"] == 1).all() and np.allclose(frame["trust"], 1) and set(frame["near"]) == {4}
    space, shown = (np.linalg.norm(np.diff(p, axis=0), axis=1) for p in (unit(flat), frame[["x", "y"]]))
    assert np.allclose(shown / space, (shown / space)[0], atol=1e-5)
    assert np.isclose(np.square(frame[["x", "y"]]).sum(axis=1).mean(), 1)


def test_a_map_says_how_little_it_shows():
    row = maps.quality(pca_map(embeddings(), WORDS)).iloc[0]
    assert 0.3 < row["recall"] < 0.9 and 0.5 < row["trust"] < 1 and np.isclose(row["recall_chance"], 4 / 9)
    said = figures.describe_map(pca_map(embeddings(), WORDS))
    assert f"the map keeps {row['recall']:.0%} (44.4% by chance)" in said and "no measurement" in said


def test_the_numbers_of_a_map_are_those_of_others_and_of_a_loop():
    table, words = grouped()
    frame = maps.word_maps({"made": table}, words, "pca", control=False)
    flat, space, k = frame[["x", "y"]].to_numpy(), unit(table), frame["near"][0]
    assert k == 10
    assert np.isclose(frame["trust"].mean(), trustworthiness(space, flat, n_neighbors=10, metric="cosine"))
    for i in (0, 17):
        others = [j for j in range(len(flat)) if j != i]
        near = set(sorted(others, key=lambda j: -space[i] @ space[j])[:10])
        shown = set(sorted(others, key=lambda j: np.linalg.norm(flat[i] - flat[j]))[:10])
        assert np.isclose(frame["recall"][i], len(near & shown) / 10)
        same = [words["domain"].iloc[j] == words["domain"].iloc[i] for j in shown]
        assert np.isclose(frame["purity_map"][i], np.mean(same))
    assert np.isclose(frame["purity"].mean(), geometry.purity(table.centred(), words)[0])


def test_the_control_has_the_shape_of_the_table_and_nothing_of_its_words():
    table, words = grouped()
    numbers = maps.quality(maps.word_maps({"made": table}, words, "pca"))
    assert list(numbers.index) == ["made", "permuted:made"]
    made, permuted = numbers.iloc[0], numbers.iloc[1]
    assert np.allclose(made[["trust", "recall"]], permuted[["trust", "recall"]])
    assert made["purity"] > 0.9 and made["purity_map"] > 0.8 and permuted["purity_map"] < 0.5
    assert made["moved"] == 0 < permuted["moved"]


def test_a_turned_table_has_the_same_map():
    table, words = grouped()
    turn = np.linalg.qr(np.random.default_rng(2).standard_normal((6, 6)))[0]
    turned = Embeddings(table.words, (table.table @ turn * 5 + 1).astype(np.float32))
    frame = maps.word_maps({"made": table, "turned": turned}, words, "pca", control=False)
    assert frame["moved"].max() < 1e-4


def test_words_without_a_domain_count_for_no_purity_and_missing_ones_are_left_out():
    table, words = grouped()
    words = words.assign(domain=words["domain"].where(np.arange(60) >= 20, ""))
    some = Embeddings(table.words[:50], table.table[:50])
    frame = maps.word_maps({"made": table, "short": some}, words, "pca", control=False)
    assert len(frame) == 100 and (frame["purity"].isna() == (frame["domain"] == "")).all()
    inside = words[20:50]
    shorter = maps.quality(frame).loc["short", "purity"]
    assert np.isclose(shorter, geometry.purity(some.centred(), inside)[0])


def test_umap_is_the_same_for_a_seed_and_another_picture_for_another():
    table, words = grouped()
    first, again, other = (maps.word_maps({"t": table}, words, seed=s, control=False) for s in (0, 0, 1))
    assert first.equals(again) and not np.allclose(first["x"], other["x"])
    numbers = maps.quality(first).iloc[0]
    assert numbers["purity_map"] > 0.9 and numbers["trust"] > 0.8


def test_maps_that_cannot_be_made_are_refused():
    with pytest.raises(StudyError, match="needs 7 words or more; found 3"):
        pca_map(embeddings(), "abc")
    with pytest.raises(StudyError, match="no vector for 'zz'"):
        pca_map(embeddings(), (*WORDS, "zz"))
    with pytest.raises(StudyError, match="unknown kind of map 'tsne'.*pca, umap"):
        maps.word_maps({"t": embeddings()}, WORDS, "tsne")
    with pytest.raises(StudyError, match="needs a table and n_neighbors of 2 or more; found 0 and 15"):
        maps.word_maps({}, WORDS)
    for n in (0, 1):
        with pytest.raises(StudyError, match=f"n_neighbors of 2 or more; found 1 and {n}"):
            maps.word_maps({"t": embeddings()}, WORDS, n_neighbors=n)
    same = np.float32([[0.1, 0.7]] * 10)
    for values in (0 * same, same, np.arange(10, dtype=np.float32)[:, None]):
        bad = Embeddings(WORDS, values)
        for method in maps.METHODS:
            with pytest.raises(StudyError, match=rf"bad cannot be mapped: its 10 vectors of {bad.dim} dim"):
                maps.word_maps({"t": embeddings(), "bad": bad}, WORDS, method)


def test_a_map_that_has_lost_its_numbers_is_not_drawn():
    frame = pca_map(embeddings(), WORDS)
    for draw in (figures.plot_map, figures.plot_maps, figures.describe_map):
        with pytest.raises(StudyError, match="has lost trust, recall"):
            draw(frame.drop(columns=["trust", "recall"]))


def test_stored_maps_are_made_once_and_read_where_only_the_committed_ones_are(
    tiny_corpus, monkeypatch, tmp_path
):
    made = maps.stored_maps(("lsa", "random"), tiny_corpus, 20, dim=4, method="pca")
    assert list(dict.fromkeys(made["source"])) == ["lsa", "permuted:lsa", "random"] and len(made) == 60
    assert set(made["domain"]) > {"", "kitchen"} and made["count"].max() > 100
    monkeypatch.setattr(maps, "pretrain", None)
    (tmp_path / "results" / "local" / "maps").rename(tmp_path / "results" / "maps")
    assert maps.stored_maps(("lsa", "random"), tiny_corpus, 20, dim=4, method="pca").equals(made)
    with pytest.raises(TypeError):  # other settings are another map
        maps.stored_maps(("lsa", "random"), tiny_corpus, 19, dim=4, method="pca")


def test_maps_of_a_folder_lie_beside_the_others(tiny_corpus, tmp_path):
    maps.stored_maps(("random",), replace(tiny_corpus, name="folder:../a b/x.y"), 20, dim=4, method="pca")
    (path,) = tmp_path.rglob("*.parquet")
    assert path.parent == tmp_path / "results" / "local" / "maps"
    assert path.name.startswith("folder-..-a-b-x.y-pca-0-")


# Figures


def test_words_stand_where_the_map_has_them_and_domains_have_marks():
    table, words = grouped(12)
    frame = pca_map(table, words)
    ax = figures.plot_map(frame)
    assert {text.get_text() for text in ax.texts} == set(words.index)
    assert {tuple(text.xy) for text in ax.texts} == set(zip(frame["x"], frame["y"]))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["harbour", "kitchen", "school"]
    drawn = {tuple(place) for part in ax.collections for place in part.get_offsets().data}
    assert drawn == set(zip(frame["x"], frame["y"]))
    assert f"{frame['recall'].mean():.0%} of 5 neighbours kept; purity" in ax.get_title(loc="left")


def test_several_maps_have_a_panel_and_their_numbers_each():
    table, words = grouped()
    frame = maps.word_maps({"made": table, "again": table}, words, "pca")
    axes = figures.plot_maps(frame, words=("w3",))
    shown = [ax for ax in axes.flat if ax.axison]
    assert [ax.get_title(loc="left").strip() for ax in shown] == ["made", "permuted:made", "again"]
    assert all(ax.texts[-1].get_text().startswith("trust 0.") for ax in shown)
    assert [text.get_text() for text in shown[0].texts][:1] == ["w3"]
    with pytest.raises(StudyError, match="one map is drawn here; choose one of made, permuted:made, again"):
        figures.plot_map(frame)
    said = figures.describe_maps(frame)
    assert (
        "3 maps of the same 60 words by PCA" in said and "permuted:made" in said and "may be read off" in said
    )


def test_maps_without_domains_are_drawn_in_one_colour():
    frame = maps.word_maps({"a": embeddings(), "b": embeddings(5)}, WORDS, "pca", control=False)
    axes = figures.plot_maps(frame)
    assert [len(ax.collections) for ax in axes.flat] == [1, 1] and not axes.flat[0].figure.legends[
        0
    ].get_texts()
    said = figures.describe_maps(frame)
    assert "purity" not in said and "domains" not in said and "nan" not in said


def test_words_move_from_their_place_to_the_other():
    table, words = grouped()
    frame = maps.word_maps({"made": table}, words, "pca")
    ax = figures.plot_moves(frame, ["w3", "w4"])
    arrows = {tuple(text.xyann): tuple(text.xy) for text in ax.texts if not text.get_text()}
    places = frame.set_index(["source", "word"])[["x", "y"]]
    for word in ("w3", "w4"):
        assert arrows[tuple(places.loc[("made", word)])] == tuple(places.loc[("permuted:made", word)])
    said = figures.describe_moves(frame, ["w3", "w4"])
    assert f"{frame['moved'][60:].median():.2f} of the map's radius" in said
    with pytest.raises(StudyError, match="between two maps; found 1: made"):
        figures.plot_moves(frame[:60], ["w3"])
    with pytest.raises(StudyError, match="none of zz is among the 60 words"):
        figures.plot_moves(frame, ["zz"])


def test_names_keep_clear_of_each_other():
    frame = pca_map(*grouped(12))
    frame.loc[:3, ["x", "y"]] = 0.5  # four words at one place
    ax = figures.plot_map(frame)
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts[:4]]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))


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
