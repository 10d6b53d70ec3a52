"""A pretrainer of the user's own, from a Python file: a source like every other, known by its content."""

import numpy as np
import pytest
from test_experiments import BASE, tiny, use  # noqa: F401  fixtures

from rtl_core import experiments, run
from rtl_core.pretrain import pretrain
from rtl_core.storage import StudyError

OWN = """
import numpy as np

from rtl_core import Embeddings, Pretrained

NUMBER = 0


def pretrain(corpus, vocabulary, config):
    rng = np.random.default_rng(config.seed)
    words = {word for d in corpus.documents for line in d.lines() for word in line}
    words = tuple(word for word in vocabulary.words if word in words)
    table = rng.standard_normal((len(words), config.dim)).astype("float32")
    return Pretrained(Embeddings(words, table), {"splits": len({d.split for d in corpus.documents})})
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def test_it_is_a_source_that_a_language_model_can_be_run_with(own, tiny, capsys):  # noqa: F811
    record = run(BASE.replace(source=f"code:{own}"))
    facts, left = record.pretrained["provenance"], tiny.n_tokens("train") - record.text["lm_tokens"]
    assert facts["tokens_read"] == tiny.n_tokens("train") and record.text["extra_tokens"] == left > 0
    assert facts["source"] == f"code:{own}" and facts["text_fingerprint"] == tiny.fingerprint
    assert record.name.startswith("tiny-code-0-") and record.pretrained["coverage"]["type_share"] == 1
    permuted = run(BASE.replace(source=f"permuted:code:{own}"))
    assert permuted.scores != record.scores and "permuted_code" in permuted.name
    own_text = run(BASE.replace(source=f"code:{own}", pretrain_on="lm-split"))
    assert own_text.text["extra_tokens"] == 0


def test_it_never_sees_test_text(own, tiny):  # noqa: F811
    guarded = pretrain(f"code:{own}", tiny, dim=4)
    assert guarded.scores == {"splits": 2}  # train and valid


def test_its_identity_is_its_content(own, tiny, tmp_path, capsys):  # noqa: F811
    first, again = BASE.replace(source=f"code:{own}"), BASE.replace(source=f"code:{tmp_path / 'renamed.py'}")
    (tmp_path / "renamed.py").write_text(OWN)
    assert experiments.record_path(first) == experiments.record_path(again)
    run(first)
    capsys.readouterr()
    run(again)
    assert "loaded" in capsys.readouterr().err
    before = experiments.record_path(again)
    (tmp_path / "changed.py").write_text(OWN.replace("NUMBER = 0", "NUMBER = 1"))
    assert experiments.record_path(BASE.replace(source=f"code:{tmp_path / 'changed.py'}")) != before


def test_another_seed_and_what_it_says_of_itself_count(own, tiny):  # noqa: F811
    own.write_text(
        OWN.replace("Embeddings(words, table)", 'Embeddings(words, table, {"tokens_read": 7, "labels": 3})')
    )
    tables = [pretrain(f"code:{own}", tiny, dim=4, seed=seed).embeddings for seed in (0, 1)]
    assert not np.array_equal(tables[0].table, tables[1].table)
    assert [tables[0].provenance[name] for name in ("tokens_read", "labels", "seed")] == [7, 3, 0]


@pytest.mark.parametrize(
    "text, name, message",
    [
        (None, "own.py", "there is no file"),
        (OWN, "own.txt", "no Python file; code:PATH takes one whose name ends in .py"),
        (OWN.replace("def pretrain", "def other"), "own.py", "has no function pretrain"),
        (
            OWN.replace("config.dim", "3"),
            "own.py",
            "must return Pretrained of 4 dimensions, got vectors of 3",
        ),
        (OWN.replace("return Pretrained(", "return print("), "own.py", "of 4 dimensions, got NoneType"),
    ],
)
def test_what_is_no_pretrainer_is_refused(text, name, message, tiny, tmp_path):  # noqa: F811
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(StudyError, match=message):
        pretrain(f"code:{tmp_path / name}", tiny, dim=4)
