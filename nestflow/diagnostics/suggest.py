"""Did you mean ...? Nearest names for a misspelt one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word nearest to a misspelt one, or None if nothing is near."""
    names = sorted(set(known))
    folded = {n.lower(): n for n in names}
    if word.lower() in folded:
        return folded[word.lower()]
    found = get_close_matches(word, names, n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """A `help:` sentence, or None."""
    near = nearest(word, known)
    return f"did you mean `{near}`?" if near else None
