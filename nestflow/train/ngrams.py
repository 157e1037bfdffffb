"""Yardsticks: byte n-gram models with add-k smoothing, in bits per byte on the validation split.

p(b | context) = (count(context b) + k) / (count(context) + 256 k). k is the best of a grid *on the validation split*,
which flatters the yardstick a little and never the model beside it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from nestflow.diagnostics.core import fail
from nestflow.train.data import Corpus

GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
NAMES = {1: "unigram", 2: "bigram", 3: "trigram", 4: "4-gram"}


def ngram_bpb(corpus: Corpus, n: int, grid: tuple[float, ...] = GRID) -> tuple[float, float]:
    """Bits per byte of the n-gram model on the validation split, and the k that gave it. n: 1 to 7 bytes.

    Scored are the bytes that have n − 1 bytes before them. Raises NF522 if a split is shorter than n.
    """
    train = _codes(corpus.train_N.numpy(), n)
    val = _codes(corpus.val_M.numpy(), n)
    if not len(train) or not len(val):
        raise fail("NF522", f"the text is too short for a byte model of order {n}")
    joint = _lookup(train, val)
    # the context is counted where a byte follows it, so that the n-gram counts sum to it
    context = _lookup(train >> 8, val >> 8)
    scored = [(float(-np.log2((joint + k) / (context + 256 * k)).mean()), k) for k in grid]
    return min(scored)


def baselines(corpus: Corpus, orders: tuple[int, ...] = (1, 2, 3, 4)) -> dict[str, float]:
    """Bits per byte of the n-gram models by name: {"unigram": ..., "bigram": ..., ...}."""
    return {NAMES.get(n, f"{n}-gram"): ngram_bpb(corpus, n)[0] for n in orders}


def _codes(text: NDArray[np.uint8], n: int) -> NDArray[np.int64]:
    """Each run of n bytes as one integer; the last byte is the lowest eight bits."""
    wide = text.astype(np.int64)
    count = max(len(wide) - n + 1, 0)
    out = np.zeros(count, np.int64)
    for i in range(n):
        out = (out << 8) | wide[i : i + count]
    return out


def _lookup(seen: NDArray[np.int64], asked: NDArray[np.int64]) -> NDArray[np.float64]:
    """How often each asked code was seen."""
    values, counts = np.unique(seen, return_counts=True)
    at = np.minimum(np.searchsorted(values, asked), len(values) - 1)
    return np.where(values[at] == asked, counts[at], 0).astype(np.float64)
