"""Snippets for editors: the statements with places to fill in, every field, every word of the vocabulary."""

from __future__ import annotations

from nestflow.editor import words
from nestflow.vocabulary import REQUIRED, WORDS, Word
from nestflow.vocabulary.record import SlotDef

Snippet = dict[str, str | list[str]]

# What a statement looks like when it is new; `${1:x}` is a place to fill in.
STATEMENTS: dict[str, tuple[str, list[str]]] = {
    "nestflow": (
        "A whole spec: a memory in a language model, and a level that learns the rest.",
        [
            "nestflow 1",
            "param dim = ${1:64}",
            "input tokens : int[T] in [0, 256)",
            "output model(tokens)",
            "",
            "level ${2:fast}(x) {",
            "  every     1 token",
            "  memory    ${3:matrix}",
            "  key       x |> linear |> l2norm",
            "  value     x |> linear",
            "  query     x |> linear |> l2norm",
            "  objective ${4:l2}",
            "  update    gd(${5:0.1})",
            "}",
            "",
            "flow model(tokens) { return lm(tokens, mixers = ${2:fast}, dim = dim) }",
            "loss = cross_entropy(model(tokens), next(tokens))",
            "level outer { every 1 step; memory weights(model); objective loss; update ${6:adamw(1e-3)} }",
            "$0",
        ],
    ),
    "level": (
        "A level on the token clock: what it stores in, what flows through it, what it minimises, how it learns.",
        [
            "level ${1:name}(x) {",
            "  every     ${2:1 token}",
            "  memory    ${3:matrix}",
            "  key       x |> linear |> l2norm",
            "  value     x |> linear",
            "  query     x |> linear |> l2norm",
            "  objective ${4:l2}",
            "  update    ${5:gd(0.1)}",
            "  $0",
            "}",
        ],
    ),
    "outer": (
        "A level on the step clock: it learns weights.",
        [
            "level ${1:outer} {",
            "  every     ${2:1 step}",
            "  memory    weights(${3:model})",
            "  objective ${4:loss}",
            "  update    ${5:adamw(1e-3)}",
            "}",
        ],
    ),
    "flow": (
        "A flow: a function of its slots; each call has weights of its own.",
        ["flow ${1:name}(${2:x}) {", "  return ${0:x}", "}"],
    ),
    "optimizer": ("An update rule.", ["optimizer ${1:name}(${2:lr}) {", "  step ${0:-lr * g}", "}"]),
    "param": (
        "A number that is set from outside.",
        ["param ${1:name} = ${2:1} in [${3:1}, ${4:1024}]  ## ${0:what it is}"],
    ),
    "input": ("An input of the model; T is the token axis.", ["input ${1:tokens} : ${2:int[T] in [0, 256)}"]),
    "use": ("Brings a shipped spec, or one of your own files.", ["use ${1:optimizers.adamw}"]),
    "extends": ("Derives a spec from another.", ["extends ${1:architectures.titans} {", "  $0", "}"]),
    "repeat": ("A block several times, each with weights of its own.", ["repeat ${1:depth} { ${0:x = block(x)} }"]),
    "for": ("Statements once for each of some names or numbers.", ["for ${1:m} in [${2:keys, values}] {", "  $0", "}"]),
    "if": ("A choice that is known when compiling.", ["if ${1:condition} {", "  $0", "}"]),
    "assert": ("What must hold of the params.", ['assert ${1:dim % heads == 0}, "${0:heads must divide dim}"']),
}


def snippets() -> dict[str, Snippet]:
    """A VS Code snippet file: name -> prefix, body, description."""
    out: dict[str, Snippet] = {}
    for word, (about, body) in STATEMENTS.items():
        out[word] = {"prefix": word, "body": body, "description": about}
    for name, w in words.field_records().items():
        if name not in out and name not in words.CONTROL:
            out[name] = {"prefix": name, "body": f"{name} $0", "description": f"{w.signature}\n{w.doc}"}
    for w in WORDS.values():
        if w.name not in out:
            out[w.name] = {"prefix": w.name, "body": _call(w), "description": f"{w.signature}\n{w.doc}".strip()}
    return dict(sorted(out.items()))


def _call(w: Word) -> str:
    """A call with its required slots to fill in; what takes its input from a pipe alone needs no brackets."""
    required = [s for s in w.slots if s.default is REQUIRED]
    if w.kind in ("memory", "objective") or (w.kind in ("function", "special") and len(required) <= 1):
        given = [s for s in required if w.kind != "function"]
        return w.name if not given else f"{w.name}({_places(given)})"
    return f"{w.name}({_places(required)})"


def _places(slots: list[SlotDef]) -> str:
    return ", ".join(f"${{{i}:{s.name}}}" for i, s in enumerate(slots, 1))
