"""The reference of the language, a page a kind, made from the records of its words:

    python -m nestflow.editor.make        writes docs/reference/ with the editors' files

Each word has its signature, its meaning, its defaults, where it comes from, what others call it, and a line that runs.
"""

from __future__ import annotations

from collections.abc import Iterable

from nestflow.vocabulary import REQUIRED, WORDS, Word
from nestflow.vocabulary.examples import example
from nestflow.vocabulary.fields import SYNTAX
from nestflow.vocabulary.later import LATER

# page: title, the kinds on it, a first paragraph
PAGES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "fields": (
        "Fields",
        ("field",),
        "The fields of a level, of one of its memories, and of an optimizer. In a level the order is free; a field of "
        "the level is the default of its memories' field.",
    ),
    "statements": (
        "Statements",
        ("statement",),
        "What stands at the top of a spec, or in the body of a flow, a level or an optimizer.",
    ),
    "execution": (
        "Settings of execution",
        ("setting",),
        "They stand in `execution { … }`, in a file that `nestflow tune` writes, or in "
        "`nestflow.compile(…, execution = {…})`, and change no result beyond rounding. "
        "[How a spec is run](../execution.md) says when each is of use.",
    ),
    "names": ("Given names", ("given name",), "Names that the language gives. A name of your own cannot hide them."),
    "functions": (
        "Functions",
        ("function", "special"),
        "They act on the feature axes at each tick; the batch and the token axis are never indexed. `x |> f(a)` is "
        "`f(x, a)`. Missing leading axes and axes of size 1 stretch.",
    ),
    "memories": (
        "Memories",
        ("memory",),
        "What a level stores in. Any block or flow is a memory too: `memory mlp(depth = 2)`.",
    ),
    "objectives": (
        "Objectives and losses",
        ("objective", "loss"),
        "What a level minimises: p is the recall at the key, v the value. Losses are of the model's outputs.",
    ),
    "updates": (
        "Updates, retention, schedules",
        ("update", "retention", "projection", "schedule"),
        "`update` is an expression for the step that is added; `retain` is what is kept. The optimizers that ship "
        "have [a page of their own](optimizers.md).",
    ),
    "distributions": (
        "Distributions",
        ("distribution",),
        "What weights start from: `init = normal(0.02)`. Functions of distributions are distributions.",
    ),
}  # fmt: skip


def pages() -> dict[str, str]:
    """The text of each page by its file's name."""
    made = {f"{name}.md": _page(name) for name in PAGES}
    made["optimizers.md"] = _shipped(
        "optimizers",
        "Shipped optimizers",
        "Each is a spec in `specs/optimizers/`, known without `use`. It serves on every clock: in a training level, or "
        "in a memory that learns at each token. They are written in the language, and so is a new one.",
    )
    made["blocks.md"] = _shipped(
        "blocks", "Shipped blocks", "Flows in `specs/blocks/`, known without `use`. Each serves as a memory too."
    )
    made["diagnostics.md"] = _diagnostics()
    made["elsewhere.md"] = _elsewhere()
    made["README.md"] = _index()
    return made


def records(kinds: Iterable[str]) -> list[Word]:
    """All words of some kinds, in the order of the vocabulary."""
    wanted = tuple(kinds)
    return [w for w in (*SYNTAX.values(), *WORDS.values()) if w.kind in wanted]


def _page(name: str) -> str:
    title, kinds, about = PAGES[name]
    words = records(kinds)
    parts = [f"# {title}", about, " · ".join(f"[{w.name}](#{_anchor(w.name)})" for w in words)]
    for w in words:
        parts += _section(w, len(kinds) > 1)
    return _joined(parts)


def _section(w: Word, say_kind: bool) -> list[str]:
    kind = f" ({w.kind})" if say_kind and w.kind != "function" else ""
    parts = [f"## {w.name}", f"`{w.signature}`{kind}", " ".join(w.doc.split())]
    defaults = [f"`{s.name} = {_value(s.default)}`" for s in w.slots if not s.required]
    needed = [f"`{s.name}`" for s in w.slots if s.default is REQUIRED]
    if defaults:
        parts.append(f"Needs {', '.join(needed) or 'nothing'}; by default {', '.join(defaults)}.")
    if w.paper:
        parts.append(f"From: {w.paper}.")
    if w.also:
        parts.append("Elsewhere called " + ", ".join(f"`{a}`" for a in w.also) + ".")
    line = example(w.name)
    if line:
        parts.append(f"```text\n{line}\n```")
    return parts


def _value(v: object) -> str:
    return {True: "true", False: "false", None: "none"}.get(v, str(v)) if isinstance(v, (bool, type(None))) else str(v)


def _shipped(folder: str, title: str, about: str) -> str:
    """The optimizers or the blocks as they are written, with their documentation."""
    from nestflow.language.shipped import shipped_files, shipped_template

    names = sorted({n.rsplit(".", 1)[-1] for n in shipped_files() if n.startswith(f"{folder}.")})
    found = [(n, t) for n in names if (t := shipped_template(n)) is not None and t.span is not None]
    parts = [f"# {title}", about, " · ".join(f"[{n}](#{_anchor(n)})" for n, _ in found)]
    for n, t in found:
        doc = "".join(f"## {line}".rstrip() + "\n" for line in (t.doc or "").splitlines())
        parts += [f"## {n}", f"```text\n{doc}{t.span.text if t.span else ''}\n```"]
    return _joined(parts)


def _elsewhere() -> str:
    """You know it as … / here it is: what the records say that others call them, and the words of other languages."""
    from nestflow.language.words import FOREIGN_WORDS

    homes = {w.name: name for name, (_, kinds, _) in PAGES.items() for w in records(kinds)}
    found: dict[str, list[str]] = {}
    for w in (*SYNTAX.values(), *WORDS.values()):
        for a in w.also:
            found.setdefault(a, []).append(f"[`{w.name}`]({homes[w.name]}.md#{_anchor(w.name)})")
    rows = [f"| `{a}` | {', '.join(found[a])} |" for a in sorted(found, key=lambda a: (a.lower(), a))]
    foreign = [f"| `{w}` | {said.replace('|', chr(92) + '|')} |" for w, said in sorted(FOREIGN_WORDS.items())]
    return _joined(
        [
            "# You know it as …",
            "Words of other libraries and papers, and what stands here for them. A spec that uses one is told so.",
            "\n".join(["| you know it as | here it is |", "|---|---|", *rows]),
            "## Words of other languages",
            "\n".join(["| where you would write | here |", "|---|---|", *foreign]),
        ]
    )


def _diagnostics() -> str:
    from importlib.resources import files

    folder = files("nestflow.diagnostics") / "pages"
    titles: dict[str, str] = {}
    for file in folder.iterdir():
        if file.name.endswith(".md"):
            titles[file.name[:-3]] = file.read_text(encoding="utf-8").split("\n", 1)[0].partition(": ")[2]
    groups = {
        "NF0": "Files, commands, values given from outside", "NF1": "Reading the text", "NF2": "Names and arguments",
        "NF3": "Types, units, shapes", "NF4": "The level graph", "NF5": "Compiling", "NF6": "Bundles and streams",
        "NF7": "Data and training", "NF8": "Optimizers on your own network", "NF9": "The rest",
    }  # fmt: skip
    parts = [
        "# Diagnostics",
        "Each mistake has a code, and each code a page that ships with the package: `nestflow explain NF201`. A page "
        "says what is wrong and why, with a wrong and a right spec.",
    ]
    for start, title in groups.items():
        codes = sorted(c for c in titles if c.startswith(start))
        if codes:
            rows = [f"| [{c}](../../nestflow/diagnostics/pages/{c}.md) | {titles[c]} |" for c in codes]
            parts += [f"## {title}", "\n".join(["| code | what |", "|---|---|", *rows])]
    return _joined(parts)


def _index() -> str:
    parts = [
        "# Reference",
        "Every word of the language, made from the records that the compiler reads; `nestflow explain WORD` prints the "
        "same. Each line shown runs in the tests. [The language, on one page](../tutorial.md) is the way in, "
        "[What a tick does](../meaning.md) the meaning.",
    ]
    for name, (title, kinds, _) in PAGES.items():
        words = " · ".join(f"[{w.name}]({name}.md#{_anchor(w.name)})" for w in records(kinds))
        parts.append(f"**[{title}]({name}.md)**: {words}")
    parts.append(
        "**[Shipped optimizers](optimizers.md)**, **[Shipped blocks](blocks.md)**, **[Diagnostics](diagnostics.md)**"
    )
    if LATER:
        parts.append("In the language, not built yet: " + ", ".join(f"`{w}`" for w in sorted(LATER)) + ".")
    return _joined(parts)


def _anchor(name: str) -> str:
    return name.lower()


def _joined(parts: Iterable[str]) -> str:
    return "\n\n".join(p for p in parts if p) + "\n"
