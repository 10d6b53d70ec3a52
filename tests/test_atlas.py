"""The interactive map, without a browser: what is chosen, found and moved; files for other viewers."""

import sys

import numpy as np
import pandas as pd
import pytest

from rtl_core import atlas, maps
from rtl_core.embeddings import Embeddings
from rtl_core.storage import StudyError

N = 40
DOMAINS = np.array(["kitchen", "harbour", "", "school"])[np.arange(N) % 4]
NAMES = (*(f"w<{i}" for i in range(N - 1)), '"')  # to be escaped where words become HTML
WORDS = pd.DataFrame({"domain": DOMAINS, "count": np.arange(N) + 9}, pd.Index(NAMES, name="word"))


def table(seed):
    return Embeddings(NAMES, np.random.default_rng(seed).standard_normal((N, 6)).astype(np.float32))


@pytest.fixture(scope="module")
def two_maps():
    return maps.word_maps({"left": table(0), "right": table(1)}, WORDS, "pca", control=False)


@pytest.fixture
def explorer(two_maps):
    return atlas.Explorer(two_maps, {"left": table(0), "right": table(1)})


def drawn(scatter):
    return scatter.widget.points[:, :2]


def test_what_is_chosen_on_one_map_is_chosen_on_the_other(explorer):
    explorer.choose(["w<3", "w<7"])
    assert [list(scatter.selection()) for scatter in explorer.maps] == [[3, 7], [3, 7]]
    explorer.maps[1].selection([2])  # as a lasso on the right map does
    assert explorer.chosen == ["w<2"] and list(explorer.maps[0].selection()) == [2]
    assert 'role="status" aria-live="polite"' in explorer.said.value and "w&lt;2" in explorer.said.value
    assert "left keeps" in explorer.said.value  # never without its numbers


def test_the_slider_goes_from_one_map_to_the_other(explorer):
    left, right = explorer.maps
    start, end = drawn(left), drawn(right)
    assert not np.allclose(start, end)
    explorer.slider.value = 0.5
    assert np.allclose(drawn(left), (start + end) / 2, atol=1e-6) and np.allclose(drawn(right), end)
    explorer.slider.value = 1
    assert np.allclose(drawn(left), end)
    explorer.right.value = "left"
    assert np.allclose(drawn(left), start) and np.allclose(drawn(right), start)


def test_a_word_is_found_with_its_nearest_in_the_original_spaces(explorer):
    explorer.search.value = "w<5"
    near = {other for seed in (0, 1) for other, _ in table(seed).centred().neighbors("w<5", maps.NEIGHBOURS)}
    assert set(explorer.chosen) == {"w<5"} | near
    explorer.search.value = "zz"
    assert "zz is not on these maps" in explorer.said.value


def test_a_domain_is_chosen(explorer):
    assert explorer.domain.options == ("", "harbour", "kitchen", "school")
    explorer.domain.value = "kitchen"
    assert explorer.chosen == [f"w<{i}" for i in range(0, N, 4)]
    explorer.domain.value = ""
    assert explorer.chosen == [] and "No word chosen" in explorer.said.value


def test_the_control_is_not_the_map_that_one_begins_with():
    three = maps.word_maps({"left": table(0), "right": table(1)}, WORDS, "pca")
    assert atlas.Explorer(three).right.value == "right"


def test_dragging_chooses_when_asked(explorer):
    explorer.mode.value = "lasso"
    assert [scatter.widget.mouse_mode for scatter in explorer.maps] == ["lasso", "lasso"]


def test_a_long_list_is_cut(two_maps, monkeypatch):
    monkeypatch.setattr(atlas, "SHOWN", 3)
    explorer = atlas.Explorer(two_maps)
    explorer.choose(NAMES[:10])
    assert "w&lt;2" in explorer.said.value and "and 7 more" in explorer.said.value


def test_words_stand_at_their_own_places_whatever_the_order_of_rows(two_maps, explorer):
    turned = pd.concat([two_maps[:N], two_maps[N:][::-1]]).astype({"word": "category"})  # as stored
    for here, there in zip(atlas.Explorer(turned).maps, explorer.maps):
        assert np.array_equal(drawn(here), drawn(there))


def test_what_cannot_be_explored_is_refused(two_maps):
    with pytest.raises(StudyError, match="from one map to another; found \\['left'\\]"):
        atlas.Explorer(two_maps[:N])
    with pytest.raises(StudyError, match="the same words, each once; right has 37 of the 40 of left"):
        atlas.Explorer(two_maps[:-3])
    twice = two_maps.copy()
    twice.loc[N + 3, "word"] = "w<4"
    with pytest.raises(StudyError, match="right has 40 of the 40 of left, or others"):
        atlas.Explorer(twice)
    with pytest.raises(StudyError, match="has lost trust"):
        atlas.Explorer(two_maps.drop(columns="trust"))
    with pytest.raises(StudyError, match="zz: not among the 40 words"):
        atlas.Explorer(two_maps).choose(["zz"])


def test_the_projector_reads_back_vectors_and_words(tmp_path):
    words = pd.concat([WORDS, pd.DataFrame({"domain": "", "count": 1}, pd.Index(["unseen"], name="word"))])
    vectors, metadata = atlas.write_projector(table(0), words, tmp_path / "new")
    assert np.allclose(np.loadtxt(vectors, delimiter="\t"), table(0).table)
    lines = [line.split("\t") for line in metadata.read_text(encoding="utf-8").splitlines()]
    expected = [[word, domain, str(count)] for word, (domain, count) in zip(NAMES, WORDS.to_numpy())]
    assert lines == [["word", "domain", "count"], *expected]
    with pytest.raises(StudyError, match="none of the words has a vector"):
        atlas.write_projector(table(0), words[-1:], tmp_path)
    broken = Embeddings(("a", "b\tc"), np.ones((2, 3), np.float32))
    words = pd.DataFrame({"domain": "", "count": 1}, pd.Index(broken.words, name="word"))
    with pytest.raises(StudyError, match="no tab or line end; found .'b.*tc'.. Leave these out"):
        atlas.write_projector(broken, words, tmp_path / "broken")
    assert not (tmp_path / "broken").exists()


def test_embedding_atlas_is_missed_with_advice(monkeypatch):
    monkeypatch.setitem(sys.modules, "embedding_atlas", None)
    with pytest.raises(StudyError, match="pip install --no-deps embedding-atlas.*python-dateutil"):
        atlas.open_atlas(table(0), WORDS, "pca")


def test_embedding_atlas_gets_the_neighbours_of_the_original_space(monkeypatch):
    found = {}

    class Viewer:
        class EmbeddingAtlasWidget:
            def __init__(self, frame, **options):
                found.update(frame=frame, options=options)

    monkeypatch.setitem(sys.modules, "embedding_atlas", Viewer)
    monkeypatch.setitem(sys.modules, "embedding_atlas.widget", Viewer)
    assert isinstance(atlas.open_atlas(table(0), WORDS, "pca"), Viewer.EmbeddingAtlasWidget)
    for n in (7, 10, 11, 12):
        atlas.open_atlas(table(0), WORDS[:n], "pca")
        for i, row in enumerate(found["frame"]["neighbors"]):
            assert len(set(row["ids"]) - {i}) == len(row["ids"]) == min(10, n - 1)
            assert np.isfinite(row["distances"]).all()
    atlas.open_atlas(table(0), WORDS, "pca")
    near = [NAMES[i] for i in found["frame"]["neighbors"][4]["ids"]]
    assert near == [other for other, _ in table(0).centred().neighbors("w<4", maps.NEIGHBOURS)]
    assert found["options"] == {"x": "x", "y": "y", "text": "word", "neighbors": "neighbors"}
