"""Everything a spec may name, one small record each."""

from nestflow.vocabulary import chance, fields, functions, images, losses, matrices
from nestflow.vocabulary.record import REQUIRED, WORDS, Word, lookup


def find(name: str) -> Word | None:
    """The record of any word: a function, a memory, an update; or a field, a statement, a given name."""
    return lookup(name) or fields.SYNTAX.get(name)


__all__ = [
    "REQUIRED", "WORDS", "Word", "chance", "fields", "find", "functions", "images", "lookup", "losses", "matrices",
]  # fmt: skip
