"""Names that a spec may not take: those that the language gives."""

from __future__ import annotations

from typing import Any

from nestflow.diagnostics.core import Span
from nestflow.language import tree
from nestflow.vocabulary.fields import GIVEN

AXES = {"T": "the tokens of a sequence", "N": "the examples of a task"}
_OTHERS = {"y": "out", "M": "memory_of", "t": "at", "g": "grad", "w": "weights_of", "head": "head_index"}


def check_name(elab: Any, name: str, span: Span | None) -> None:
    """An input, param, slot or name of one's own must not hide a given name."""
    if name in GIVEN:
        message = f"`{name}` is a given name ({GIVEN[name][0].partition(' (')[0]}) and cannot be hidden"
        raise elab.failure("NF219", message, span, f"choose another: `{_OTHERS.get(name, name + '_')}`")


def check_axis_name(elab: Any, name: str, span: Span | None) -> None:
    """An input is not called like an axis."""
    if name in AXES:
        message = f"`{name}` is the name of an axis ({AXES[name]}), and an input of this name would be taken for it"
        raise elab.failure("NF219", message, span, "choose another: `tokens`" if name == "T" else "choose another")


def check_slots(elab: Any, template: tree.Template) -> None:
    """The slots of a template: no given name, and none twice."""
    seen: set[str] = set()
    for s in template.slots or ():
        check_name(elab, s.name, s.span)
        if s.name in seen:
            message = f"two slots of `{template.name}` are called `{s.name}`"
            raise elab.failure("NF220", message, s.span, "give one of them another name")
        seen.add(s.name)
