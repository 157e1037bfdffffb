"""Every slip of the pen in every shipped spec: each token left out, doubled, swapped with its neighbour, misspelt.

    python -m tests.language.mutate                 all of them (many minutes)
    python -m tests.language.mutate --every 50      each fiftieth
    python -m tests.language.mutate titans -v       one spec; -v prints what is wrong with the outcomes

An outcome is right if the mutant is a valid spec, or if it is told: without a traceback, at most 3 mistakes for one
slip, one of them at the slip's line or naming its word, in a sentence written for it, within a second.
"""

from __future__ import annotations

import argparse
import re
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from nestflow.diagnostics.core import Diagnostic, NestflowError, Span
from nestflow.graph.build import build
from nestflow.language.reader import parse_named
from nestflow.language.resolve import load, program_of
from nestflow.language.shipped import specs_dir

KINDS = ("delete", "double", "swap", "misspell")
MOST = 3
SECONDS = 1.0
_TOKEN = re.compile(
    r"(?P<skip>[ \t\r\n]+|#[^\n]*)|(?P<name>[^\W\d][\w{}]*)|(?P<number>\d[\w.]*(?:(?<=[eE])[+-]\d+)?)"
    r'|(?P<string>"[^"\n]*")|(?P<sign>\|>|//|==|!=|<=|>=|.)',
    re.DOTALL,
)
_NEIGHBOUR = {
    "{": "(", "}": ")", "(": "[", ")": "]", "[": "(", "]": ")", "|>": "|", "=": "==", "==": "=", "*": "**", "^": "**",
    ",": ".", ".": ",", ":": ";", ";": ":", "+": "++", "-": "--", "/": "\\", "@": "#", "<": "<<", ">": ">>", "%": "%%",
}  # fmt: skip
_GENERIC = re.compile(r"cannot stand here; .* was expected$|^`[^`]*` cannot follow `")


@dataclass(frozen=True)
class Mutant:
    """A spec's text with one slip: which word, at which place of the mutated text, and how the text began and ended."""

    spec: str
    kind: str
    word: str
    new: str
    start: int
    end: int
    text: str

    @property
    def title(self) -> str:
        line = self.text.count("\n", 0, self.start) + 1
        return f"{self.spec}:{line}: {self.kind} `{self.word}`" + (f" to `{self.new}`" if self.new else "")


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: `kind` is valid, told, or what is wrong with it."""

    mutant: Mutant
    kind: str
    said: str
    seconds: float


def words(text: str) -> list[re.Match[str]]:
    """The tokens of a text, blanks and comments left out."""
    return [m for m in _TOKEN.finditer(text) if m.lastgroup != "skip"]


def misspelt(m: re.Match[str]) -> str:
    """A word with a letter lost or a sign with another in its place."""
    word = m[0]
    if m.lastgroup == "name":
        at = len(word) // 2
        return word[:at] + word[at + 1 :] if len(word) > 2 else word + "q"
    if m.lastgroup == "number":
        return word + "o"
    if m.lastgroup == "string":
        return word[:-1]
    return _NEIGHBOUR.get(word, "?")


def mutants(spec: str, text: str) -> Iterator[Mutant]:
    """Every mutant of a text, in its order."""
    found = words(text)
    for i, m in enumerate(found):
        a, b, word = m.start(), m.end(), m[0]
        yield Mutant(spec, "delete", word, "", a, a, text[:a] + text[b:])
        yield Mutant(spec, "double", word, "", a, b + 1 + len(word), f"{text[:b]} {word}{text[b:]}")
        if i + 1 < len(found) and found[i + 1][0] != word:
            c, d, other = found[i + 1].start(), found[i + 1].end(), found[i + 1][0]
            yield Mutant(spec, "swap", word, other, a, d, text[:a] + other + text[b:c] + word + text[d:])
        new = misspelt(m)
        yield Mutant(spec, "misspell", word, new, a, a + len(new), text[:a] + new + text[b:])


def outcome(m: Mutant) -> Outcome:
    """What reading and building a mutant gives."""
    began = time.process_time()
    try:
        path = specs_dir() / m.spec
        build(program_of(parse_named(m.text, path), path.parent, str(path)))
        kind, said = "valid", ""
    except NestflowError as e:
        kind, said = judged(m, e.diagnostics), str(e)
    except Exception:
        kind, said = "traceback", traceback.format_exc()
    seconds = time.process_time() - began
    if seconds > SECONDS and kind != "traceback":
        kind = "slow"
    return Outcome(m, kind, said, seconds)


def judged(m: Mutant, diagnostics: tuple[Diagnostic, ...]) -> str:
    """What is wrong with what is said, or `told`."""
    if len(diagnostics) > MOST:
        return "cascade"
    if any(not d.message or d.span is None for d in diagnostics):
        return "nowhere"
    if any(_GENERIC.search(d.message) for d in diagnostics):
        return "generic"
    return "told" if any(_at(m, d) for d in diagnostics) else "elsewhere"


def _at(m: Mutant, d: Diagnostic) -> bool:
    """Whether a diagnostic points at the slip's line (a deletion's: that line or the next), or names its word."""
    first = m.text.count("\n", 0, m.start)
    rest = m.text[m.end :]
    blank = len(rest) - len(rest.lstrip())
    last = m.text.count("\n", 0, m.end + blank)
    for span in (d.span, *(r.span for r in d.related)):
        if span is not None and _touches(span, m, first, last):
            return True
    said = " ".join([d.message, d.help or "", d.span.text if d.span else ""])
    return any(re.search(rf"(?<!\w){re.escape(w)}(?!\w)", said) for w in (m.word, m.new) if w and w[0].isalpha())


def _touches(span: Span, m: Mutant, first: int, last: int) -> bool:
    if span.source.text != m.text:
        return False
    a = span.line - 1
    b = span.source.position(max(span.start, span.end - 1))[0] - 1
    return a <= last and b >= first


def shipped() -> dict[str, str]:
    """The texts of all shipped specs by `folder/file`."""
    folder = specs_dir()
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".nl", ".yaml"))
    return {p.relative_to(folder).as_posix(): p.read_text(encoding="utf-8") for p in files}


def sweep(specs: dict[str, str], every: int = 1, first: int = 0) -> Iterator[Outcome]:
    """The outcomes of each `every`-th mutant of all the specs, from the `first`."""
    i = 0
    for name, text in specs.items():
        for m in mutants(name, text):
            if i % every == first % every:
                yield outcome(m)
            i += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specs", nargs="*", help="parts of the specs' names; all without")
    parser.add_argument("--every", type=int, default=1, help="take each n-th mutant")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("-v", action="store_true", help="print what is wrong")
    parser.add_argument("--kind", help="with -v: only outcomes of this kind (told and valid may be asked for)")
    args = parser.parse_args()
    texts = {n: t for n, t in shipped().items() if not args.specs or any(s in n for s in args.specs)}
    build(load("titans"))  # the first check of a process imports
    counts: Counter[str] = Counter()
    by_kind: Counter[tuple[str, str]] = Counter()
    slowest = 0.0
    for o in sweep(texts, args.every, args.first):
        counts[o.kind] += 1
        by_kind[o.mutant.kind, o.kind] += 1
        slowest = max(slowest, o.seconds)
        if args.v and (o.kind == args.kind if args.kind else o.kind not in ("valid", "told")):
            print(f"--- {o.kind}: {o.mutant.title}\n{o.said}\n", flush=True)
    print(f"{sum(counts.values()):,} mutants of {len(texts)} specs; the slowest took {slowest:.2f} s")
    for kind, n in counts.most_common():
        print(f"  {kind:10} {n:7,}  " + "  ".join(f"{k} {by_kind[k, kind]:,}" for k in KINDS))


if __name__ == "__main__":
    main()
