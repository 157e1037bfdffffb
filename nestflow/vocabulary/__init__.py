"""Everything a spec may name, one small record each."""

from nestflow.vocabulary import functions, losses
from nestflow.vocabulary.record import REQUIRED, WORDS, Word, lookup

__all__ = ["REQUIRED", "WORDS", "Word", "functions", "lookup", "losses"]
