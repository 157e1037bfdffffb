"""Globs over paths: `*` within a part, `**` across any number of parts, `[8..15]` a range of numbers."""

from __future__ import annotations

import re
from functools import lru_cache

from nestflow.diagnostics.core import Span, fail

_RANGE = re.compile(r"\[(\d+)\.\.(\d+)\]")


def check_glob(glob: str, span: Span | None) -> None:
    """Raise for a glob that means nothing."""
    if re.search(r"\[\d+-\d+\]", glob):
        low, high = re.findall(r"\[(\d+)-(\d+)\]", glob)[0]
        raise fail("NF238", f"`{glob}`: a range of numbers has two dots", span, f"`[{low}..{high}]`")
    if not glob or any(not p for p in glob.split(".") if p != "") or glob.startswith(".") or glob.endswith("."):
        raise fail("NF238", f"`{glob}` is no glob of paths", span, '`"**.mlp.**"`, `"block.[0..3].**"`')


@lru_cache(maxsize=4096)
def _parts(glob: str) -> tuple[str, ...]:
    hidden = _RANGE.sub(lambda m: f"[{m.group(1)}\0{m.group(2)}]", glob)
    return tuple(p.replace("\0", "..") for p in hidden.split("."))


def matches(glob: str, path: str) -> bool:
    """Whether a path matches."""
    return _match(_parts(glob), tuple(path.split(".")))


def _match(glob: tuple[str, ...], path: tuple[str, ...]) -> bool:
    reach = {0}
    for part in path:
        step: set[int] = set()
        for i in _closure(reach, glob):
            if i < len(glob):
                if glob[i] == "**":
                    step.add(i)
                elif _part(glob[i], part):
                    step.add(i + 1)
        reach = step
    return len(glob) in _closure(reach, glob)


def _closure(reach: set[int], glob: tuple[str, ...]) -> set[int]:
    """`**` matches zero parts too."""
    done = set(reach)
    for i in sorted(reach):
        while i < len(glob) and glob[i] == "**":
            i += 1
            done.add(i)
    return done


@lru_cache(maxsize=4096)
def _part(glob: str, part: str) -> bool:
    pattern, at = "", 0
    numbers: list[tuple[int, int]] = []
    for m in _RANGE.finditer(glob):
        pattern += re.escape(glob[at : m.start()]).replace(r"\*", ".*") + r"(\d+)"
        numbers.append((int(m.group(1)), int(m.group(2))))
        at = m.end()
    pattern += re.escape(glob[at:]).replace(r"\*", ".*")
    found = re.fullmatch(pattern, part)
    return found is not None and all(a <= int(g) <= b for g, (a, b) in zip(found.groups(), numbers, strict=True))
