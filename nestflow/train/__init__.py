"""Training: text as bytes, examples by input, the loop, checkpoints, measures, sampling, yardsticks, recall.

Names are loaded on first use, so that importing this costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nestflow.train.config import TrainConfig, load_train_config, train_config
    from nestflow.train.data import Corpus, Windows, corpus
    from nestflow.train.evaluate import PositionLoss, loss_by_position, token_bits, validation_bpb
    from nestflow.train.examples import Batches, Dataset, dataset
    from nestflow.train.history import History, StepRecord, read_history
    from nestflow.train.loop import train
    from nestflow.train.ngrams import baselines, ngram_bpb
    from nestflow.train.plot import plot_loss
    from nestflow.train.recall import RecallResult, RecallTask, recall_accuracy, train_recall
    from nestflow.train.sampling import generate
    from nestflow.train.sources import measure

_HOMES = {
    "baselines": "ngrams",
    "ngram_bpb": "ngrams",
    "TrainConfig": "config",
    "load_train_config": "config",
    "train_config": "config",
    "Corpus": "data",
    "Windows": "data",
    "corpus": "data",
    "Batches": "examples",
    "Dataset": "examples",
    "dataset": "examples",
    "measure": "sources",
    "PositionLoss": "evaluate",
    "loss_by_position": "evaluate",
    "token_bits": "evaluate",
    "validation_bpb": "evaluate",
    "generate": "sampling",
    "History": "history",
    "StepRecord": "history",
    "read_history": "history",
    "train": "loop",
    "plot_loss": "plot",
    "RecallResult": "recall",
    "RecallTask": "recall",
    "recall_accuracy": "recall",
    "train_recall": "recall",
}

__all__ = [
    "Batches",
    "Corpus",
    "Dataset",
    "History",
    "PositionLoss",
    "RecallResult",
    "RecallTask",
    "StepRecord",
    "TrainConfig",
    "Windows",
    "baselines",
    "corpus",
    "dataset",
    "generate",
    "load_train_config",
    "loss_by_position",
    "measure",
    "ngram_bpb",
    "plot_loss",
    "read_history",
    "recall_accuracy",
    "token_bits",
    "train",
    "train_config",
    "train_recall",
    "validation_bpb",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"nestflow.train.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'nestflow.train' has no attribute {name!r}")
