"""The specs that come with the package: where they are, what they are called, which words they define."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from nestflow.diagnostics.core import Span, fail
from nestflow.diagnostics.suggest import did_you_mean
from nestflow.language import tree as T
from nestflow.language.reader import SUFFIXES, read_file

_HEAD = re.compile(r"^[ \t]*(?:level|flow|optimizer)[ \t]+([^\W\d]\w*)", re.MULTILINE)
# Where words are looked for, in this order; in other folders a file lends only the word it is named after.
_WORDS = ("optimizers", "blocks")


@cache
def specs_dir() -> Path:
    """The folder of the shipped specs: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "_specs"
    return inside if inside.is_dir() else package.parent / "specs"


@cache
def shipped_files() -> dict[str, Path]:
    """Every shipped spec by its dotted name: `architectures.hope`, `optimizers.adam`."""
    root = specs_dir()
    files = sorted(p for p in root.rglob("*") if p.suffix in SUFFIXES and p.is_file()) if root.is_dir() else []
    files.sort(
        key=lambda p: (p.with_suffix("").parts, p.suffix == ".nl")
    )  # beside a YAML twin the .nl is the one meant
    return {".".join(p.relative_to(root).with_suffix("").parts): p for p in files}


def shipped_names() -> list[str]:
    """The dotted names of all shipped specs, sorted."""
    return sorted(shipped_files())


def find_shipped(name: str, span: Span | None = None) -> tuple[str, Path]:
    """The full name and file of a shipped spec; the last part of a name suffices where it is unique.

    Raises NestflowError: NF009 (none of that name), NF010 (several).
    """
    files = shipped_files()
    if name in files:
        return name, files[name]
    found = [n for n in files if n.endswith("." + name)]
    if len(found) == 1:
        return found[0], files[found[0]]
    if found:
        raise fail(
            "NF010",
            f"`{name}` names {len(found)} shipped specs",
            span,
            "write one of " + ", ".join(f"`{n}`" for n in found),
        )
    raise fail("NF009", f"there is no shipped spec `{name}`", span, _instead(name))


def _instead(name: str) -> str:
    if "/" in name or "\\" in name:
        return "a file's name ends in .nl, .yaml or .yml"
    for suffix in (".nl", ".yaml", ".yml"):
        if Path(name + suffix).is_file():
            return f"the file is `{name}{suffix}`: its ending belongs to its name"
    last = {n.rsplit(".", 1)[-1]: n for n in shipped_files()}
    near = did_you_mean(name, shipped_files()) or did_you_mean(name.rsplit(".", 1)[-1], last)
    if near:
        return near
    return (
        "a shipped name is one like "
        + ", ".join(f"`{n}`" for n in list(last)[:4])
        + "; a file's name ends in .nl, .yaml or .yml"
    )


@cache
def read_shipped(path: Path) -> T.Spec:
    """A shipped spec, read once."""
    return read_file(path)


@cache
def _words() -> dict[str, Path]:
    """Which file defines which word, found without parsing any."""
    words: dict[str, Path] = {}
    files = shipped_files()
    for folder in (*_WORDS, None):
        for name, path in files.items():
            top = name.split(".", 1)[0]
            if (top != folder) if folder else (top in _WORDS):
                continue
            for word in _HEAD.findall(path.read_text(encoding="utf-8")) if path.suffix == ".nl" else [path.stem]:
                if folder is not None or word == path.stem:
                    words.setdefault(word, path)
    for name, path in files.items():  # a word's own file comes before any other
        if name.split(".", 1)[0] in _WORDS and words.get(path.stem) not in (None, path):
            words[path.stem] = path
    return words


def shipped_words() -> list[str]:
    """All words that the shipped specs define, for suggestions."""
    return sorted(_words())


def shipped_template(name: str) -> T.Template | None:
    """The level, flow or optimizer that a word names in the shipped specs, or None."""
    path = _words().get(name)
    if path is None:
        return None
    for s in read_shipped(path).body:
        if isinstance(s, T.Template) and s.name == name:
            return s
    return None


def clear() -> None:
    """Forget what was read: for tests, and for editors in a checkout."""
    for f in (shipped_files, read_shipped, _words):
        f.cache_clear()
