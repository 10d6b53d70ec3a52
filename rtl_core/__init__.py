"""Reverse transfer learning: can word embeddings trained for other tasks improve a neural language model?"""

from rtl_core import figures
from rtl_core.comparison import compare
from rtl_core.config import Experiment, PretrainConfig
from rtl_core.corpora import load_corpus
from rtl_core.corpora.corpus import Corpus, Document
from rtl_core.corpora.vocabulary import Vocabulary
from rtl_core.embeddings import Embeddings
from rtl_core.experiments import run, run_all
from rtl_core.pretrain import Pretrained, pretrain
from rtl_core.results import Record, load_results
from rtl_core.storage import StudyError
from rtl_core.studies import grid

__all__ = [
    "Corpus", "Document", "Embeddings", "Experiment", "PretrainConfig", "Pretrained", "Record", "StudyError",
    "Vocabulary", "compare", "figures", "grid", "load_corpus", "load_results", "pretrain", "run", "run_all",
]  # fmt: skip
