"""The JSON Schema (draft 7) of a spec in YAML, made from the records of the vocabulary and the fields: what an editor
with a YAML language server completes, shows at the pointer, and underlines.

It knows sections, fields, and the slots of the vocabulary's words and of the shipped optimizers and blocks. What stands
inside a string is the language's own business: `nestflow check` reads that.
"""

from __future__ import annotations

import re
from typing import Any

from nestflow.editor import words
from nestflow.graph.execution import SETTINGS
from nestflow.language import tree as T
from nestflow.language.shipped import shipped_template
from nestflow.vocabulary import WORDS
from nestflow.vocabulary.fields import SYNTAX

Schema = dict[str, Any]
NAME = r"[^\s\d(),.:=\"#][^\s(),.:=\"#]*"  # validators differ in what `\w` is
HEAD = rf"^{NAME}\s*(?:\([\s\S]*\))?$"
BODIES = "if", "for", "repeat"
HINTS = {"memory": ("memory",), "objective": ("objective", "loss")}


def schema() -> Schema:
    """The schema as a JSON document."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "nestflow spec",
        "description": "A spec of nested levels, in YAML. `nestflow check` says the rest.",
        "type": "object",
        "required": ["nestflow"],
        "properties": {
            "nestflow": {"description": "The version of the language.", "enum": [1, "1"]},
            **_sections(),
            **_shared(),
        },
        "patternProperties": _nested("top"),
        "additionalProperties": False,
        "definitions": _definitions(),
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/definitions/{name}"}


def _map(of: Schema, about: str = "", names: str | None = None) -> Schema:
    """A mapping whose values are of one kind; `names` is a pattern of its keys."""
    made: Schema = {"type": ["object", "null"], "additionalProperties": of}
    if names:
        made["propertyNames"] = {"pattern": names}
    return made | ({"description": about} if about else {})


def _documented(value: Schema) -> Schema:
    """The value, or `{is: value, doc: text}`. Said with `if`, so that a validator points at the part that is wrong."""
    with_doc = {
        "type": "object",
        "required": ["is", "doc"],
        "properties": {"is": value, "doc": _ref("doc")},
        "additionalProperties": False,
    }
    return _choose({"type": "object", "required": ["is", "doc"]}, with_doc, value)


def _choose(condition: Schema, then: Schema, otherwise: Schema) -> Schema:
    return {"if": condition, "then": then, "else": otherwise}


def _list(of: Schema) -> Schema:
    """A list, or its only entry."""
    return _choose({"type": "array"}, {"items": of}, of)


# --- sections ---------------------------------------------------------------------------------------


def _sections() -> Schema:
    """The keys of a file's top, and of an `extends`, `for` or `if` there."""
    heads = HEAD
    return {
        "doc": _ref("doc"),
        "use": _list(_documented({"type": "string"})) | {"description": "Shipped specs or files that this one uses."},
        "output": _ref("value"),
        "params": _map(_ref("param"), "Numbers that are set from outside: `--set dim=512`.", f"^{NAME}$"),
        "inputs": _map(
            _documented(
                {"type": "string", "pattern": r"^\s*(?:int|float|bool)\s*(?:\[[\s\S]*\])?\s*(?:in\s[\s\S]*)?$"}
            ),
            "Inputs by name, as `int[T] in [0, 256)`; T is the token axis.",
            rf"^{NAME}(?:\.{NAME})*$",
        ),
        "clocks": _map(_documented({"type": ["string", "null"]}), "Clocks of your own."),
        "extern": _map(_documented({"type": ["string", "null"]}), "Networks that are given from outside.", heads),
        "execution": _execution(),
        "levels": _map(_ref("level"), "Levels under their heads: `delta(x)`.", heads),
        "flows": _map(_ref("flow"), "Flows under their heads: what each returns, or its statements.", heads),
        "optimizers": _map(_ref("flow"), "Update rules under their heads: the step, or statements.", heads),
    }


def _shared() -> Schema:
    """The keys that mean the same at the top and in a level."""
    return {
        "let": _map(_ref("value"), "Names."),
        "shared": _map(_ref("value"), "Instances that are used in several places."),
        "emit": _map(_ref("value"), "Numbers that monitors show."),
        "assert": _list(_documented({"type": "string"})),
        "statements": _list(_ref("statement")),
    }


def _nested(body: str) -> Schema:
    """`for`, `if`, `repeat` as keys; at the top `extends` too."""
    made: Schema = {rf"^(?:{'|'.join(BODIES)})\s+\S": _ref(body)}
    if body == "top":
        made[r"^extends\s+\S"] = _ref("top")
    return made


def _definitions() -> Schema:
    fields = {name: _field(name) for name in words.fields() if name not in (*words.RULE_FIELDS, "output")}
    top = {"type": "object", "properties": _sections() | _shared() | {"else": _ref("top")}}
    level = {"type": "object", "properties": {"doc": _ref("doc"), **fields, "return": _field("return"), **_shared()}}
    memory = {
        "type": "object",
        "required": ["as"],
        "properties": {"doc": _ref("doc"), "as": _field("memory"), **fields},
    }
    nested = _nested("levelBody") | {rf"^memory\s+{NAME}$": _ref("memory")}
    return {
        "doc": {"description": "What a `##` comment says: documentation.", "type": "string"},
        "expression": _expression(),
        "value": _documented(_ref("expression")),
        "slots": _map(_ref("expression"), names=f"^{NAME}$"),
        "call": _call(),
        "param": _param(),
        "top": top | {"patternProperties": _nested("top"), "additionalProperties": False},
        "levelBody": level
        | {"patternProperties": nested, "additionalProperties": False}
        | {"properties": level["properties"] | {"else": _ref("levelBody")}},
        "level": _documented(_choose({"type": "array"}, {"items": _ref("statement")}, _ref("levelBody"))),
        "memory": memory | {"additionalProperties": False},
        "flow": _documented(_choose({"type": "array"}, {"items": _ref("statement")}, _ref("expression"))),
        "statement": _statement(),
    }


# --- entries ----------------------------------------------------------------------------------------


def _expression() -> Schema:
    simple = {"type": ["number", "boolean", "string", "array"], "minLength": 1, "items": _ref("expression")}
    about = "A number, a string in the language's expressions, a list, or a call with keywords."
    return {"description": about} | _choose({"type": "object"}, _ref("call"), simple)


def _field(name: str) -> Schema:
    """A field by its record; what it often is is offered, and any expression is right."""
    record = words.field_records()[name]
    form, about = record.signature, record.doc
    made: Schema = {"markdownDescription": f"`{form}`\n\n{about}", "description": f"{form}\n{about}"}
    if name == "every":  # the one field that is no expression: it has a unit, or is `never`
        return made | _documented({"type": "string", "pattern": r"^\s*(?:never|[\s\S]*\S\s+\w+(?:\s+of\s+\S+)?)\s*$"})
    offered = [w.strip() for w in form.removeprefix(name).split("|")]
    hints = {w for w in offered if re.fullmatch(r"[a-z_0-9]+", w)}
    hints |= {w.name for w in WORDS.values() if w.kind in HINTS.get(name, ()) and not any(s.required for s in w.slots)}
    made["allOf"] = [_ref("value")]  # in draft 7 nothing may stand beside a `$ref`
    return made | ({"examples": sorted(hints)} if hints else {})


def _execution() -> Schema:
    """The settings by name; a param may stand for a number, so a text is right wherever one is."""
    made: dict[str, Schema] = {"doc": _ref("doc")}
    for name, setting in SETTINGS.items():
        w = SYNTAX[name]
        made[name] = {"description": f"{w.signature}\n{w.doc}", "allOf": [_ref("value")]}
        if setting.names:
            made[name]["examples"] = list(setting.names)
    about = "How the spec is run; it changes no result beyond rounding."
    return {"type": ["object", "null"], "description": about, "properties": made, "additionalProperties": False}


def _call() -> Schema:
    """A one-key mapping: a function, and its slots by name."""
    known = {w.name: _slots(w.signature + "\n" + w.doc, [s.name for s in w.slots], w.variadic) for w in WORDS.values()}
    for name in sorted(words.builtins() - set(WORDS)):
        template = shipped_template(name)
        if isinstance(template, (T.Flow, T.Optimizer)):
            known[name] = _slots(template.doc or "", [s.name for s in template.slots or ()])
    record = _map(_ref("expression"), "A record: values by name.")
    return {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "propertyNames": {"pattern": f"^{NAME}$"},
        "properties": {"record": record, **known},
        "additionalProperties": _ref("slots"),
    }


def _slots(about: str, names: list[str], more: bool = False) -> Schema:
    """The keywords of one function; every call may also be given a `name`."""
    return {
        "description": about.strip(),
        "type": "object",
        "properties": {n: _ref("expression") for n in [*names, "name"]},
        "additionalProperties": more,
    }


def _param() -> Schema:
    domain = {"anyOf": [{"type": "string"}, {"type": "array", "items": _ref("expression")}]}
    parts = {"value": _ref("expression"), "in": domain, "type": {"type": "string"}, "doc": _ref("doc")}
    full = {"type": "object", "required": ["value"], "properties": parts, "additionalProperties": False}
    some = {"type": "object", "anyOf": [{"required": [k]} for k in ("value", "in", "type")]}
    return _choose(some, full, _ref("expression"))


def _statement() -> Schema:
    """An entry of a list of statements: a string, or a key with a body."""
    body = _choose({"type": "object"}, _ref("levelBody"), {"type": ["array", "string"], "items": _ref("statement")})
    with_body = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "properties": {"else": _list(_ref("statement")), "execution": _execution()},
        "patternProperties": {
            rf"^(?:{'|'.join(BODIES)})\s+\S": _documented(body),
            rf"^memory\s+{NAME}$": _ref("memory"),
            r"^extends\s+\S": _ref("top"),
            rf"^level\s+{HEAD[1:]}": _ref("level"),
            rf"^(?:flow|optimizer)\s+{HEAD[1:]}": _ref("flow"),
        },
        "additionalProperties": False,
    }
    is_body = {"type": "object", "not": {"required": ["is", "doc"]}}
    return _choose(is_body, with_body, _documented({"type": "string"}))
