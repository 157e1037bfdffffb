"""Rows and edges of weights that learn while the module reads, and where an optimiser's memories are written."""

from __future__ import annotations

import re
from typing import Protocol

from nestflow.diagnostics.core import Span
from nestflow.graph.model import EdgeKind, LevelInfo, StepLevel, Texts, TokenLevel, WeightSpec
from nestflow.ir.rule import Rule, RuleSlot, SlotUpdate


class AddEdge(Protocol):
    """Notes an edge between two rows of the level table."""

    def __call__(self, kind: EdgeKind, source: str, target: str, label: str = "") -> None: ...


def slot_span(rule: Rule | None, name: str) -> Span | None:
    """Where an optimiser's memory is written."""
    return next((s.span for s in (rule.program if rule else ()) if isinstance(s, SlotUpdate) and s.slot == name), None)


def slot_texts(slot: RuleSlot, span: Span | None) -> Texts:
    """The fields of an optimiser's memory as they stand in its text, for the pictures."""
    found: dict[str, str] = {}
    for line in re.split(r"[;\n]", span.text.partition("{")[2].rpartition("}")[0]) if span is not None else ():
        word, _, rest = line.partition("#")[0].strip().partition(" ")
        if word in ("key", "value", "objective", "update", "retain"):
            found.setdefault(word, rest.strip())
    kind = "like(w)" if slot.like == "w" else "scalar"
    if slot.like == "tensor" and span is not None:  # as it is written
        kind = re.split(r"[{\n]", span.text.partition(":")[2])[0].strip() or "tensor"
    return Texts(memory=kind, **found)


def reading_rows(
    x: TokenLevel, weights: dict[str, WeightSpec], at: int
) -> list[tuple[tuple[float, float, int], LevelInfo]]:
    """A level that learns weights while the module reads: each copy keeps them, and what its rule needs."""
    size = sum(weights[p].size for p in x.weights)
    text = "every token" if x.every == 1 else f"every {x.every} tokens"
    if x.reset not in ("sequence", "never") or x.per != "sequence":
        text += f", per {x.per}" if x.reset in ("sequence", "never") else f", reset each({x.reset})"
    rows = [
        (
            (0.0, float(x.every), at),
            LevelInfo(x.name, x.name, "token", x.every, text, x.texts, 1, None, 0, size, x.doc, None, x.span),
        )
    ]
    for k, slot in enumerate(s for s in x.rule.slots if not s.name.endswith(".pending")):
        span = slot_span(x.rule, slot.name)
        kept = size if slot.like == "w" else len(x.weights)
        name, texts = f"{x.name}.{slot.name}", slot_texts(slot, span)
        info = LevelInfo(name, slot.name, "token", x.every, text, texts, 1, None, 0, kept, None, x.name, span or x.span)
        rows.append(((0.0, float(x.every) - 0.5, at + k), info))
    return rows


def reading_edges(steps: tuple[StepLevel, ...], tokens: tuple[TokenLevel, ...], add: AddEdge) -> None:
    """Where weights that are learned while reading start: at a slower level's state."""
    owner = {p: s.name for s in steps for p in s.weights}
    for x in tokens:
        for slot in x.rule.slots:
            if not slot.name.endswith(".pending"):
                add("optimises", f"{x.name}.{slot.name}", x.name)
        for source in dict.fromkeys([x.init] if x.init else [owner[p] for p in x.starts if p in owner]):
            add("initialises", source, x.name, "start")


__all__ = ["AddEdge", "reading_edges", "reading_rows", "slot_span", "slot_texts"]
