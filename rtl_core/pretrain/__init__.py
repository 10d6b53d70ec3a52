"""From a source's name to its embeddings: loaded if they were made before, else trained and kept."""

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from time import perf_counter

import numpy as np

from rtl_core.catalogue import LEAKY, base_of, find, parts_of
from rtl_core.config import RECIPE, PretrainConfig, derive_seed, identity
from rtl_core.corpora.corpus import Corpus
from rtl_core.corpora.labelled import labelled_content
from rtl_core.corpora.vocabulary import Vocabulary
from rtl_core.embeddings import Embeddings
from rtl_core.pretrain.pretrained import Pretrained, provenance
from rtl_core.storage import StudyError, cache_dir, lock_beside, read_json, say, write_json

__all__ = ["Pretrained", "pretrain", "random_vectors"]
Pretrainer = Callable[[Corpus, Vocabulary, PretrainConfig], Pretrained]


def random_vectors(vocabulary: Vocabulary, dim: int, seed: int) -> Embeddings:
    """Returns a Gaussian table of root mean square 1: what every other source is compared with."""
    rng = np.random.default_rng(derive_seed(seed, "pretrain", "random"))
    return Embeddings(vocabulary.words, rng.standard_normal((len(vocabulary), dim), dtype=np.float32), {})


def _random(corpus: Corpus, vocabulary: Vocabulary, config: PretrainConfig) -> Pretrained:
    nothing = {"text": None, "text_fingerprint": None, "readout": None, "epochs": 0}
    vectors = random_vectors(vocabulary, config.dim, config.seed)
    return Pretrained(replace(vectors, provenance=provenance(config, corpus, 0, 0.0, **nothing)))


def _from_file(corpus: Corpus, vocabulary: Vocabulary, config: PretrainConfig) -> Pretrained:
    """The user's own vectors, for the words of the vocabulary: what they were trained on is not known."""
    started, path = perf_counter(), config.source.removeprefix("file:")
    vectors = Embeddings.from_file(path, config.fold)
    if vectors.dim != config.dim:
        raise StudyError(
            f"{path} has vectors of {vectors.dim} dimensions, {config.dim} expected. Ask for {vectors.dim} (--dim, "
            "or --hidden-size of a run), or make a smaller file: "
            f"Embeddings.from_file(PATH).reduced({config.dim}).to_word2vec(NEW)."
        )
    words = tuple(word for word in vocabulary.words[2:] if word in vectors)
    if not words:
        raise StudyError(
            f"{path} has no word in common with the vocabulary: {', '.join(vectors.words[:5])} there, "
            f"{', '.join(vocabulary.words[2:7])} here. If they differ by case or digits, set fold to case, digits "
            "or case+digits."
        )
    unknown = {"text": None, "text_fingerprint": None, "readout": None, "epochs": None, **vectors.provenance}
    facts = provenance(config, corpus, None, perf_counter() - started, **unknown)
    return Pretrained(Embeddings(words, vectors.lookup(words)[0], facts))


def _from_code(corpus: Corpus, vocabulary: Vocabulary, config: PretrainConfig) -> Pretrained:
    """The user's own pretrainer: `pretrain(corpus, vocabulary, config) -> Pretrained` of a Python file.

    It is given no test text. What its provenance does not say is filled in, as if it had read all training text.
    """
    path = config.source.removeprefix("code:")
    if (spec := spec_from_file_location("own_pretrainer", path)) is None:
        raise StudyError(f"{path} is no Python file; code:PATH takes one whose name ends in .py.")
    own, started = module_from_spec(spec), perf_counter()
    spec.loader.exec_module(own)
    if not callable(getattr(own, "pretrain", None)):
        raise StudyError(
            f"{path} has no function pretrain(corpus, vocabulary, config); write one, as in pretrain/lsa.py."
        )
    readable = tuple(d for d in corpus.documents if d.split != "test")
    made = own.pretrain(replace(corpus, documents=readable, guarded=()), vocabulary, config)
    if not isinstance(made, Pretrained) or made.embeddings.dim != config.dim:
        found = f"vectors of {made.embeddings.dim}" if isinstance(made, Pretrained) else type(made).__name__
        raise StudyError(
            f"pretrain of {path} must return Pretrained of {config.dim} dimensions, got {found}."
        )
    facts, seconds = made.embeddings.provenance, perf_counter() - started
    facts = provenance(
        config, corpus, **{"tokens_read": corpus.n_tokens("train"), "seconds": seconds} | facts
    )
    return replace(made, embeddings=replace(made.embeddings, provenance=facts))


def _of(config: PretrainConfig) -> Pretrainer:
    """The function that makes a source: here, or `pretrain` of the module that the catalogue names."""
    here = {"random": _random, "file": _from_file, "code": _from_code}
    kind, shared = config.source.partition(":")[0], config.encoder == "shared"
    module = "objective" if shared else find(config.source).module
    return here[kind] if kind in here else import_module(f"{__name__}.{module}").pretrain


def pretrain(
    source: str | PretrainConfig, corpus: Corpus, vocabulary: Vocabulary | None = None, **settings
) -> Pretrained:
    """Returns the embeddings of a source with its task's scores, loaded if the same were made before.

    `settings` are those of `PretrainConfig`, such as dim (128), seed (0), epochs (None: the source's own). Without
    `vocabulary` it is the 10,000 most frequent types of the training split. A loaded result has no model.
    Raises: StudyError for an unknown source or setting, with the nearest valid ones.
    """
    given = source.to_dict() if isinstance(source, PretrainConfig) else {"source": source}
    config = PretrainConfig.from_dict(given | settings).settled()  # what changes nothing, changes nothing
    vocabulary = vocabulary or Vocabulary.build(corpus.split("train"), 10_000)
    if config.source != config.base.source:
        return _control(config, corpus, vocabulary)
    if len(parts_of(config.source)) > 1:
        return _combined(config, corpus, vocabulary)
    if config.source == "random":  # faster made than read
        return _random(corpus, vocabulary, config)
    if config.source == LEAKY:  # its model is what matters, and models are not kept
        return _of(config)(corpus, vocabulary, config)
    path = _stored_at(config, corpus, vocabulary)
    return _load(path, config) or _train(path, config, corpus, vocabulary)


def _control(config: PretrainConfig, corpus: Corpus, vocabulary: Vocabulary) -> Pretrained:
    """Returns the control of a source: its table, made once for all of them, changed as the prefix says."""
    kind, _, inner = config.source.partition(":")
    made = pretrain(config.replace(source=inner), corpus, vocabulary)
    vectors, seed = made.embeddings, derive_seed(config.seed, kind)
    if kind == "spectrum":
        changed = vectors.with_spectrum(seed)
    else:
        rows = [vocabulary.ids.get(word, 0) for word in vectors.words]
        changed = vectors.permuted(seed, vocabulary.bands[rows] if kind == "permuted-in-band" else None)
    return replace(made, embeddings=changed, model=None)


def _combined(config: PretrainConfig, corpus: Corpus, vocabulary: Vocabulary) -> Pretrained:
    """Returns the tables of A+B side by side, reduced by PCA to the dimension that is asked for."""
    made = [pretrain(config.replace(source=part), corpus, vocabulary) for part in parts_of(config.source)]
    joint = reduce(Embeddings.joined, (each.embeddings for each in made)).reduced(config.dim)
    accounts, joint_entry = [each.embeddings.provenance for each in made], find(config.source)
    read = [account["tokens_read"] for account in accounts]
    tasks = {
        base_of(account["source"]): account for account in accounts
    }.values()  # a task's labels count once
    facts = {
        "source": config.source,
        "task": joint_entry.task,
        "objective": joint_entry.objective,
        "level": joint_entry.context,
        "text": next((account["text"] for account in accounts if account["text"]), None),
        "tokens_read": None if None in read else max(read),  # they read the same text
        "labelled_only": all(account["labelled_only"] for account in accounts if account["tokens_read"]),
        "labels": sum(account["labels"] for account in tasks),
        "outside_tokens": sum(account["outside_tokens"] for account in tasks),
        "seconds": sum(account["seconds"] for account in accounts),
    }
    scores = {
        f"{a['source']} {name}": value for a, m in zip(accounts, made) for name, value in m.scores.items()
    }
    return Pretrained(replace(joint, provenance=joint.provenance | facts), scores)


def _stored_at(config: PretrainConfig, corpus: Corpus, vocabulary: Vocabulary) -> Path:
    settings, kind = config.changed() | {"source": config.content}, config.source.partition(":")[0]
    texts = [corpus.fingerprint, vocabulary.fingerprint, *labelled_content(config.source)]
    key = identity(settings, *texts, RECIPE["pretrain"])
    return cache_dir() / "pretrained" / f"{kind}-{config.seed}-{key[:16]}.json"


def _load(path: Path, config: PretrainConfig) -> Pretrained | None:
    table = path.with_suffix(".safetensors")
    if not (path.exists() and table.exists()):
        return None
    embeddings, notes = Embeddings.load(table), read_json(path)
    if not isinstance(notes, dict) or notes.keys() != {"scores", "history"}:
        raise StudyError(f"{path} is no account of a pre-training; delete it and run again.")
    facts = embeddings.provenance
    say(f"loaded {config.source} (made in {facts['seconds']:.0f} s on {facts['date']})")
    return Pretrained(embeddings, notes["scores"], notes["history"])


def _train(path: Path, config: PretrainConfig, corpus: Corpus, vocabulary: Vocabulary) -> Pretrained:
    with lock_beside(path):
        done = _load(path, config)  # another process may have trained it while this one waited
        if done:
            return done
        say(f"training {config.source}, seed {config.seed}")
        made = _of(config)(corpus, vocabulary, config)
        made.embeddings.save(path.with_suffix(".safetensors"))
        write_json(path, {"scores": made.scores, "history": made.history})
    return made
