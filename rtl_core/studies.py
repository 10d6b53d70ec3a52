"""What is run together: the arms and sizes of the study, named experiments, and every grid by its name."""

from dataclasses import dataclass

from rtl_core.choices import CHOICES
from rtl_core.config import Experiment
from rtl_core.corpora.topicworld import World
from rtl_core.storage import unknown


@dataclass(frozen=True)
class StudySize:
    """How much text and how many seeds: the same study at several sizes."""

    seeds: int  # language models an arm, each with its own pre-training
    settings: dict  # of Experiment
    arms: tuple[dict, ...]  # each a change to the baseline: source random, fine-tuned
    bound_epochs: int | None = None  # passes over all training text for the upper bound; None: left out
    across: tuple[str, ...] = ()  # settings beside those of an arm in which the arms differ: see `compare`
    leaky: bool = False  # one arm is told what it could not know: see `compare`
    along: str = ""  # what changes from arm to arm: whose text grows (see `analysis.curves`), or the corpus


FEW_ARMS = (
    {"source": "random"},
    {"source": "random", "input_mode": "frozen"},
    {"source": "word2vec-sg"},
    {"source": "word2vec-sg", "input_mode": "frozen"},
    {"source": "word2vec-cbow"},
    {"source": "domain-sentence"},
    {"source": "domain-paragraph"},
    {"source": "permuted:word2vec-sg"},
)
# Every source that needs no labelled files, and the controls.
ALL_ARMS = (
    *FEW_ARMS,
    *(
        {"source": name}
        for name in (
            "fasttext", "glove", "lsa", "lm", "bilm", "masked-lm", "domain-lsa", "next-paragraph",
            "sentence-order", "spectrum:word2vec-sg", "untrained:bilm",
        )
    ),
)  # fmt: skip

# Sources trained on labelled files (data/README.md), beside their baseline.
TASK_ARMS = tuple({"source": name} for name in ("random", "pos", "ner", "sentiment", "nli", "translation"))

# Every valid way of initialising, tying and freezing (Welch et al. 2020, table 1).
WELCH_ARMS = (
    {"source": "random", "output_init": "tied"},
    {"source": "word2vec-sg", "output_init": "tied"},
    *(
        {"source": "random", "input_mode": input_mode, "output_mode": output_mode}
        for input_mode in ("finetuned", "frozen")
        for output_mode in ("finetuned", "frozen")
    ),
    *(
        {"source": "word2vec-sg", "input_init": inputs, "input_mode": mode}
        | {"output_init": outputs, "output_mode": output_mode}
        for inputs, outputs in (
            ("pretrained", "random"),
            ("pretrained", "pretrained"),
            ("random", "pretrained"),
        )
        for mode in ("finetuned", "frozen")
        for output_mode in ("finetuned", "frozen")
    ),
)
# Further ways in for a pre-trained table.
TRANSFER_ARMS = (
    {"source": "random"},
    *({"source": "word2vec-sg", "input_mode": mode} for mode in CHOICES["input_mode"]),
    {"source": "word2vec-sg", "warmup_frozen": 2},
)
# One encoder, one text, as many updates: only the loss differs.
OBJECTIVE_ARMS = (
    {"source": "random"},
    *(
        {"source": name, "encoder": "shared"}
        for name in (
            "lm", "bilm", "masked-lm", "domain-sentence", "domain-paragraph", "next-paragraph",
            "shuffled-labels:domain-paragraph", "untrained:domain-paragraph",
        )
    ),
)  # fmt: skip
CRITERIA_ARMS = (
    {"criterion": "softmax"},
    {"criterion": "softmax", "label_smoothing": 0.1},
    {"criterion": "sampled-softmax", "n_samples": 512},
    # the full softmax differs from the arm before in loss and optimiser, from this one in the loss alone
    {"criterion": "sampled-softmax", "n_samples": 512, "output_rows": "all"},
    {"criterion": "sampled-softmax", "n_samples": 128},
    {"criterion": "sampled-softmax", "n_samples": 512, "sampling": "log-uniform"},
    {"criterion": "nce", "n_samples": 512},
    {"criterion": "adaptive-softmax"},
)
GLOBAL_ARMS = (
    {"source": "random"},
    *({"source": "random", "context_feature": name} for name in CHOICES["context_feature"][1:]),
    {"source": "random", "auxiliary": "domain"},
    {"source": "word2vec-sg"},
    {"source": "word2vec-sg", "context_feature": "domain-posterior"},
)
# How much text: of the language model, all else equal; of the pre-training, the language model's text kept. The
# recipe is the same at every size: at 44,000 and 88,000 tokens no other batch size, rate or number of epochs that was
# tried gave the baseline a validation perplexity over 1 % lower, or skip-gram one over 2 % lower.
LM_SIZES = (44_000, 88_000, 175_000, 350_000, 700_000, 1_400_000)
LM_SIZE_ARMS = (
    *({"source": name, "lm_tokens": n} for name in ("random", "word2vec-sg") for n in LM_SIZES),
    *({"source": "domain-paragraph", "lm_tokens": n} for n in LM_SIZES if n not in (88_000, 1_400_000)),
)
PRETRAIN_SIZES = (44_000, 120_000, 350_000, 1_000_000, None)
PRETRAIN_SIZE_ARMS = (
    {"source": "random"},
    *({"source": "word2vec-sg", "pretrain_tokens": n} for n in PRETRAIN_SIZES),
    *({"source": "domain-paragraph", "pretrain_tokens": n} for n in PRETRAIN_SIZES[1:]),
)
# A language with known limits (topicworld.py), at its default settings.
TOPICWORLD_ARMS = tuple(
    {"source": name}
    for name in (
        "random", "word2vec-sg", "lsa", "bilm", "domain-sentence", "domain-paragraph", "permuted:word2vec-sg"
    )
)  # fmt: skip
# As domains share more of their words: in a language of fewer words, whose grammar the text is enough to learn. At
# the default settings a model of random vectors stayed above the best that sees one word at 0.6 and 0.8, and then
# every table that shortens the way to the grammar seems to pay.
OVERLAPS = (0, 0.35, 0.6, 0.8)
OVERLAP_ARMS = tuple(
    {"corpus": World(n_domains=4, content_words=30, overlap=overlap).name, "source": name}
    for overlap in OVERLAPS
    for name in ("random", "word2vec-sg", "bilm", "domain-paragraph")
)

SMOKE = {
    "vocab_size": 500,
    "hidden_size": 8,
    "lm_tokens": 4_000,
    "valid_tokens": 1_000,
    "test_tokens": 2_000,
    "n_samples": 64,
    "batch_size": 8,
    "max_epochs": 1,
    "pretrain_epochs": 1,
}

LAPTOP = {"lm_tokens": 350_000, "valid_tokens": 10_000, "test_tokens": 150_000}
TOPICWORLD = {"corpus": "topicworld", "lm_tokens": 300_000, "valid_tokens": 10_000, "test_tokens": 100_000}
SMALL_WORLD = {
    "corpus": "topicworld:n_domains=4,content_words=30,n_documents=400",
    "lm_tokens": 40_000,
    "valid_tokens": 3_000,
    "test_tokens": 10_000,
    "hidden_size": 64,
    "n_samples": 128,
    "batch_size": 16,
}

STUDY_SIZES = {
    "smoke": StudySize(1, SMOKE, FEW_ARMS),
    "quick": StudySize(1, {"lm_tokens": 150_000, "valid_tokens": 10_000, "test_tokens": 50_000}, FEW_ARMS),
    "laptop": StudySize(3, LAPTOP, ALL_ARMS, bound_epochs=2),
    "tasks": StudySize(3, LAPTOP, TASK_ARMS),
    "welch": StudySize(3, LAPTOP, WELCH_ARMS),
    "transfer": StudySize(3, LAPTOP, TRANSFER_ARMS),
    "objective": StudySize(3, LAPTOP, OBJECTIVE_ARMS),
    "global": StudySize(3, LAPTOP, GLOBAL_ARMS, leaky=True),
    "criteria": StudySize(
        3,
        LAPTOP,
        CRITERIA_ARMS,
        across=("criterion", "n_samples", "sampling", "label_smoothing", "output_rows"),
    ),
    "contexts": StudySize(
        3,
        LAPTOP,
        tuple(
            {"source": source, "train_context": context}
            for source in ("random", "word2vec-sg")
            for context in CHOICES["train_context"]
        ),
        across=("train_context",),
    ),
    "lm-sizes": StudySize(3, LAPTOP, LM_SIZE_ARMS, along="lm_tokens"),
    "pretrain-sizes": StudySize(3, LAPTOP, PRETRAIN_SIZE_ARMS, along="pretrain_tokens"),
    # On two cores about 7 minutes, 15, and half a minute.
    "topicworld": StudySize(3, TOPICWORLD, TOPICWORLD_ARMS),
    "topicworld-overlap": StudySize(
        3, TOPICWORLD | {"lm_tokens": 450_000, "max_epochs": 6}, OVERLAP_ARMS, along="corpus"
    ),
    "topicworld-smoke": StudySize(1, SMALL_WORLD, TOPICWORLD_ARMS),
    "full": StudySize(5, {"lm_tokens": 1_000_000}, ALL_ARMS, bound_epochs=3),
}

# WikiText-2 with all its 33,278 words, one tied table, a stream of text. 60,000 tokens are enough to stop on: all of
# them, by the exact softmax, would cost a wide model a third of its epoch. Patience, as the middle of a long cycle,
# where the rate is high, has epochs without gain.
WIKITEXT_2 = Experiment(
    corpus="wikitext-2",
    vocab_size=None,
    valid_tokens=60_000,
    output_init="tied",
    input_rms=0.15,
    n_samples=2048,
    batch_size=32,
    patience=10,
)
NAMED = {
    # WikiText-2 at its full vocabulary in two epochs. Chosen on validation perplexity (stream): dropout 0 or 0.1,
    # peak 0.006 or 0.01, input_rms 0.15 or 1.
    "wikitext-2-fast": WIKITEXT_2.replace(
        hidden_size=200,
        dropout=0.1,
        n_samples=1024,
        learning_rate=1e-2,
        max_epochs=2,
        valid_tokens=None,
        patience=2,
    ),
    # The paper's size, 1 × 128. Validation perplexity (stream) of 36 epochs: 131.4, and 144.0 with dropout 0.15 and
    # no embedding dropout. Of 4 epochs on 600,000 tokens, with these: 224.6; peak 0.008 225.6, which with 4,096
    # samples is 224.2 in 1.5 times the time, with input_rms 0.5 243.3, and untied 253.9. About 32 s of processor an
    # epoch: 20 minutes.
    "wikitext-2-small": WIKITEXT_2.replace(
        dropout=0.2, embedding_dropout=0.05, learning_rate=5e-3, max_epochs=36
    ),
    # TF-LM's model (Verwimp et al. 2018), whose test perplexity with carried state is 98.2; here it is tied, and
    # trained by Adam in one cycle. Its eps holds back the rows of rare words (benchmarks/README.md): without, 25
    # epochs came to 112.1 on the same validation text, and more dropout made it worse. About 130 s of processor an
    # epoch: 37 minutes on one thread.
    "tf-lm": WIKITEXT_2.replace(
        hidden_size=512,
        dropout=0.5,
        input_dropout=0.4,
        embedding_dropout=0.1,
        batch_size=64,
        valid_tokens=20_000,
        learning_rate=4e-3,
        adam_eps=4e-5,
        max_epochs=17,
    ),
    # AWD-LSTM (Merity et al. 2018, section 4), whose test perplexity is 65.8 after some 750 epochs of averaged SGD:
    # its sizes and dropouts, but sampled softmax, and one cycle of Adam over what fits an hour, at whose end the
    # weights hardly move, so that a mean of them gains nothing. About 1,300 s of processor an epoch: 65 minutes on
    # one thread.
    "awd": WIKITEXT_2.replace(
        hidden_size=400,
        inner_size=1150,
        n_layers=3,
        dropout=0.4,
        input_dropout=0.65,
        layer_dropout=0.2,
        embedding_dropout=0.1,
        weight_drop=0.5,
        valid_tokens=20_000,
        batch_size=64,
        window=70,
        n_samples=4096,
        learning_rate=2e-3,
        max_epochs=3,
    ),
}

CUT_SHORT = "awd"  # three epochs, where the paper has some 750: results/README.md shows its curve
PUBLISHED = {"tf-lm": 98.2, "awd": 65.8}  # test perplexities of the models that these follow, sources above


def grid(name: str) -> list[Experiment]:
    """Returns the experiments of a named grid: a study size (every arm × seed, and the bounds), or one run.

    Raises: StudyError for an unknown name.
    """
    if name in NAMED:
        return [NAMED[name]]
    if name not in STUDY_SIZES:
        raise unknown("study size or experiment", name, (*STUDY_SIZES, *NAMED))
    size = STUDY_SIZES[name]
    base = Experiment(**size.settings)
    arms = [base.replace(seed=seed, **arm) for arm in size.arms for seed in range(size.seeds)]
    corpora = dict.fromkeys(arm.corpus for arm in arms)
    simple = [
        base.replace(model=model, corpus=name) for name in corpora for model in ("unigram", "kneser-ney")
    ]
    everything = [base.replace(lm_tokens=None, max_epochs=size.bound_epochs)] if size.bound_epochs else []
    return [*everything, *arms, *simple]  # the longest first, so that no worker is left waiting at the end
