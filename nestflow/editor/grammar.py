"""The TextMate grammar of `.nl`, made from the words of the language. VS Code, GitHub's linguist, Sublime and others
read such grammars. Its regular expressions mean the same to Oniguruma and to Python's `re`, so the tests run them.

A line-based grammar guesses where the parser knows: a statement begins at the start of a line or after `{`, `}`, `;`,
outside round and square brackets. The tests hold it to the parser's own answer on every shipped spec.
"""

from __future__ import annotations

from typing import Any

from nestflow.editor import words

SCOPE = "source.nestflow"
NAME = r"[^\W\d](?:\w|\{\w+\})*"
START = r"(?:^|(?<=[;{}]))[ \t]*"
IS_WORD = r"\b(?![ \t]*(?:=(?!=)|,))"  # a keyword that is given a value, or a name in a list of names, is a name
NUMBER = r"\b\d\w*(?:\.\d\w*)?(?:(?<=[eE])[+-]\d+)?"
Rule = dict[str, Any]


def grammar() -> Rule:
    """The grammar as a TextMate JSON document."""
    return {
        "$schema": "https://raw.githubusercontent.com/martinring/tmlanguage/master/tmlanguage.json",
        "name": "nestflow",
        "scopeName": SCOPE,
        "fileTypes": ["nl"],
        "patterns": [_include("comment"), _include("statement"), _include("expression")],
        "repository": {
            "comment": {"patterns": _comments()},
            "statement": {"patterns": _statements()},
            "expression": {"patterns": _expressions()},
            "brackets": _brackets(),
        },
    }


def _include(name: str) -> Rule:
    return {"include": f"#{name}"}


def _rule(match: str, name: str | None = None, **captures: str) -> Rule:
    """A rule for one match; captures by number, as `_1="keyword"`."""
    rule: Rule = {"match": match}
    if name:
        rule["name"] = _scoped(name)
    if captures:
        rule["captures"] = {k[1:]: {"name": _scoped(v)} for k, v in captures.items()}
    return rule


def _scoped(name: str) -> str:
    return " ".join(f"{part}.nestflow" for part in name.split())


def _any(*choices: str) -> str:
    return "|".join(sorted(choices, key=lambda w: (-len(w), w)))


def _comments() -> list[Rule]:
    return [
        _rule(r"##(?!#).*$", "comment.line.documentation"),
        _rule(r"#.*$", "comment.line.number-sign"),
    ]


def _statements() -> list[Rule]:
    declared = _any("param", "input", "clock", "shared")
    fields = _any(*(f for f in words.fields() if f not in ("every", "chunk")))
    return [
        _rule(rf"{START}(nestflow)[ \t]+(\d+)", _1="keyword.control.import", _2="constant.numeric.integer"),
        _rule(rf"{START}({_any(*words.BRINGS)}){IS_WORD}", _1="keyword.control.import"),
        _rule(rf"{START}(level|optimizer){IS_WORD}[ \t]+({NAME})", _1="keyword.declaration", _2="entity.name.type"),
        _rule(rf"{START}(flow|extern){IS_WORD}[ \t]+({NAME})", _1="keyword.declaration", _2="entity.name.function"),
        _rule(
            rf"{START}({declared}){IS_WORD}[ \t]+({NAME})", _1="keyword.declaration", _2="variable.other.declaration"
        ),
        _rule(rf"{START}(execution){IS_WORD}", _1="keyword.declaration"),
        _rule(rf"{START}(emit|for){IS_WORD}[ \t]+({NAME})", _1="keyword.control", _2="variable.other.declaration"),
        _rule(rf"{START}({_any('return', 'repeat', 'assert')}){IS_WORD}", _1="keyword.control"),
        _rule(
            rf"{START}(memory)[ \t]+({NAME})(?=[ \t]*:)",
            _1="support.type.property-name",
            _2="variable.other.declaration",
        ),
        {
            "begin": rf"{START}(every|chunk){IS_WORD}",
            "beginCaptures": {"1": {"name": _scoped("support.type.property-name")}},
            "end": r"(?=[;}#])|$",
            "patterns": [
                _rule(rf"(?<=[\w)\]])[ \t]+((?:{_any(*words.UNITS)})s?)\b(?!\()", _1="storage.type.unit"),
                _include("expression"),
            ],
        },
        _rule(rf"{START}({fields}){IS_WORD}(?!:)", _1="support.type.property-name"),
        _rule(rf"{START}({NAME})(?=[ \t]*(?:,[ \t]*{NAME}[ \t]*)*=(?!=))", _1="variable.other.assignment"),
    ]


def _expressions() -> list[Rule]:
    builtin = _any(*words.builtins())
    return [
        _rule(rf"(\|>)[ \t]*((?:{builtin})\b(?!\{{))", _1="keyword.operator.pipe", _2="support.function.builtin"),
        _rule(rf"(\|>)[ \t]*({NAME})", _1="keyword.operator.pipe", _2="entity.name.function"),
        {"begin": '"', "end": '"|$', "name": _scoped("string.quoted.double")},
        _rule(NUMBER, "constant.numeric"),
        _rule(rf"\b({_any('if', 'else', *words.SMALL)})\b", "keyword.control"),
        _rule(rf"\b({_any(*words.WORD_OPERATORS)})\b", "keyword.operator.word"),
        _rule(rf"(\.)({NAME})", _1="punctuation.accessor", _2="variable.other.property"),
        _rule(rf"(:)[ \t]*({_any(*words.TYPES)})\b", _1="punctuation.separator", _2="storage.type"),
        _rule(rf"\b({_any(*words.CONSTANTS)})\b", "constant.language"),
        _rule(rf"\b(?:{builtin})\b(?!\{{|[ \t]*=(?!=))", "support.function.builtin"),
        _rule(rf"({NAME})(?=\()", "entity.name.function"),
        _rule(rf"{NAME}(?=[ \t]*=(?!=))", "variable.parameter"),
        _rule(NAME, "variable.other"),
        _rule(r"\|>|==|!=|<=|>=|//|[-+*/%@^<>=]", "keyword.operator"),
        _include("brackets"),
        _rule(r"[{},:;.]", "punctuation"),
    ]


def _brackets() -> Rule:
    """Inside round and square brackets no statement begins, whatever the line."""
    return {
        "begin": r"[(\[]",
        "beginCaptures": {"0": {"name": _scoped("punctuation.section.brackets.begin")}},
        "end": r"[)\]]",
        "endCaptures": {"0": {"name": _scoped("punctuation.section.brackets.end")}},
        "patterns": [_include("comment"), _include("expression")],
    }
