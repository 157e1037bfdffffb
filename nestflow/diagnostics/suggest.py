"""Did you mean ...? Nearest names for a misspelt one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class Suggestion(str):
    """A `help:` sentence that knows what it would replace, so that `check --fix` can.

    sure: the two words differ by a slip of the pen, and no other known word is as near.
    """

    old: str
    new: str
    sure: bool

    def __new__(cls, text: str, old: str, new: str, sure: bool = True) -> Suggestion:
        self = super().__new__(cls, text)
        self.old, self.new, self.sure = old, new, sure
        return self


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word nearest to a misspelt one, or None if nothing is near."""
    names = sorted(set(known))
    folded = {n.lower(): n for n in names}
    if word.lower() in folded:
        return folded[word.lower()]
    found = get_close_matches(word, names, n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> Suggestion | None:
    """A `help:` sentence, or None."""
    names = set(known)
    near = nearest(word, names)
    if near is None:
        return None
    return Suggestion(f"did you mean `{near}`?", word, near, _is_slip(word, near, names))


def _is_slip(word: str, near: str, known: set[str]) -> bool:
    """Whether `near` is one slip away (two in a long word), and alone so."""
    limit = 1 if len(word) < 6 else 2
    d = distance(word.lower(), near.lower(), limit)
    return d <= limit and not any(n != near and distance(word.lower(), n.lower(), d) <= d for n in known)


def distance(a: str, b: str, limit: int = 3) -> int:
    """Letters added, lost, changed or swapped with a neighbour between two words; `limit` + 1 stands for more."""
    if abs(len(a) - len(b)) > limit:
        return limit + 1
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        older, before, row = before, row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y)))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                row[j] = min(row[j], older[j - 2] + 1)
    return min(row[-1], limit + 1)
