"""Programs drawn from the grammar itself: what is read is printed, converted and formatted without a loss."""

from __future__ import annotations

from functools import cache

import lark
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.lark import from_lark

from nestflow.diagnostics.core import NestflowError
from nestflow.language.fmt import convert_text, format_text
from nestflow.language.make_tables import GRAMMAR
from nestflow.language.nl import parse_nl
from nestflow.language.yaml import parse_yaml

WORDS = ["a", "b", "x", "key", "value", "memory", "lr", "step", "input", "level", "flow", "m_{p}", "linear", "tokens"]
TERMINALS = {
    "NESTFLOW": ["nestflow"], "NUMBER": ["1", "16", "0.5", "3e-4", "1_000"],
    "STRING": ['"parts.nl"', '"a.b.yaml"', '"x: {p}"', '""'],
    "BOOL": ["true", "false"], "NAME": WORDS, "_SEP": ["\n", "\n\n", "; ", "  # said\n", "\n## doc\n"],
    "IFS": ["if"], "ELSES": ["else"], "MUL": ["*", "/", "//", "%", "@"], "CMP": ["==", "!=", "<", "<=", ">", ">="],
    "LPAR": ["("], "RPAR": [")"], "LSQB": ["["], "RSQB": ["]"], "LBRACE": ["{"], "RBRACE": ["}"], "LRECORD": ["{"],
    "RRECORD": ["}"], "COMMA": [","], "COLON": [":"], "DOT": ["."], "ASSIGN": ["="], "PIPE": ["|>"], "PLUS": ["+"],
    "MINUS": ["-"], "POW": ["^"],
}  # fmt: skip
HEAD = "nestflow 1\n"


KINDS = [
    "use", "param", "input", "clock", "extern", "extends", "level", "flow", "optimizer", "execution", "assign",
    "shared", "for", "repeat", "if", "assert",
]  # fmt: skip


def written(word: str) -> str:
    return word if word.endswith("\n") else word + " "


@cache
def programs() -> st.SearchStrategy[str]:
    """A few statements, each drawn from its own rule of the grammar."""
    grammar = lark.Lark(GRAMMAR.read_text(encoding="utf-8"), start=KINDS, parser="lalr", lexer="basic")
    names = {t.name for t in grammar.terminals} | {s.name for r in grammar.rules for s in r.expansion if s.is_term}
    explicit = {n: st.sampled_from([written(w) for w in TERMINALS.get(n, [n.lower()])]) for n in names}
    statements = st.one_of(*(from_lark(grammar, start=kind, explicit=explicit) for kind in KINDS))
    return st.lists(statements, min_size=2, max_size=4).map(lambda items: HEAD + "\n".join(items) + "\n")


tally: dict[bool, int] = {True: 0, False: 0}


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def drawn(data: st.DataObject) -> None:
    text = data.draw(programs())
    try:
        spec = parse_nl(text, "drawn.nl")
    except NestflowError as e:
        tally[False] += 1
        assert e.diagnostics and all(d.message for d in e.diagnostics)
        return
    tally[True] += 1
    formatted = format_text(text)
    assert parse_nl(formatted, "b.nl") == spec, text
    assert format_text(formatted) == formatted, text
    yaml = convert_text(text)
    assert parse_yaml(yaml, "b.yaml") == spec, text
    assert parse_nl(convert_text(yaml), "c.nl") == spec, text
    assert text.count("# said") == convert_text(yaml).count("# said") == yaml.count("# said"), text


def test_programs_of_the_grammar() -> None:
    drawn()
    assert tally[True] > 30, tally
