"""Colours: the Pygments lexer and the TextMate grammar, each on every shipped spec, and held against each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pygments.token import Comment, Error, Keyword, Name, Number, Operator, Punctuation, String, Whitespace, _TokenType

import nestflow
from nestflow.editor import make, words
from nestflow.editor.grammar import grammar
from nestflow.editor.lexer import NestflowLexer
from nestflow.editor.terminal import highlight, style_of
from nestflow.language import tree as T
from nestflow.language.layout import OPENERS
from nestflow.language.merge import walk
from nestflow.language.nl import parse_nl
from nestflow.language.shipped import specs_dir
from tests.editor.textmate import Engine

ROOT = Path(__file__).resolve().parents[2]
SPECS = sorted(specs_dir().rglob("*.nl"))
TEXTS = [*SPECS, *sorted((ROOT / "examples").glob("*.nl")), *sorted((ROOT / "tests/language/corpus").glob("*.nl"))]
Piece = tuple[int, _TokenType, str]


def pieces(text: str) -> list[Piece]:
    return list(NestflowLexer().get_tokens_unprocessed(text))


def kinds(text: str) -> dict[str, _TokenType]:
    """The colour of each word of a text in which each stands once."""
    return {piece: kind for _, kind, piece in pieces(text) if kind not in (Whitespace, Punctuation)}


# --- Pygments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.stem)
def test_tokens_cover_the_text_without_errors(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = pieces(text)
    assert "".join(piece for _, _, piece in found) == text
    assert [start for start, _, _ in found] == [sum(len(p) for _, _, p in found[:i]) for i in range(len(found))]
    assert Error not in {kind for _, kind, _ in found}


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.stem)
def test_colours_follow_the_tree(path: Path) -> None:
    """Fields, heads, numbers and strings are coloured where the parser found them, and nowhere else."""
    text = path.read_text(encoding="utf-8")
    at = {start: (kind, piece) for start, kind, piece in pieces(text)}
    fields, numbers, strings, heads = set[int](), set[int](), set[int](), set[int]()

    def visit(x: object) -> None:
        if isinstance(x, T.Field) and x.name_span and x.name in words.fields():
            fields.add(x.name_span.start)
        elif isinstance(x, T.MemoryPart) and x.span:
            fields.add(x.span.start)
        elif isinstance(x, T.Number) and x.span:
            numbers.add(x.span.start)
        elif isinstance(x, T.String) and x.span:
            strings.add(x.span.start)
        elif isinstance(x, T.Template) and x.name_span:
            heads.add(x.name_span.start)

    walk(parse_nl(text, str(path)).body, visit)
    assert {s for s, (k, _) in at.items() if k is Name.Attribute} == fields
    assert numbers <= {s for s, (k, _) in at.items() if k in Number}
    assert strings <= {s for s, (k, _) in at.items() if k is String.Double}
    assert heads == {s for s in heads if at[s][0] in (Name.Class, Name.Function)}


def test_a_word_is_a_keyword_only_where_it_opens_a_statement() -> None:
    found = kinds(
        "nestflow 1\nlevel step(x) {\n  every 4 tokens\n  input = x\n  key flow |> linear\n  return level_ }\n"
    )
    assert found["nestflow"] is Keyword.Namespace and found["level"] is Keyword.Declaration
    assert found["step"] is Name.Class and found["every"] is Name.Attribute and found["tokens"] is Keyword.Type
    assert found["input"] is Name.Variable and found["flow"] is Name and found["linear"] is Name.Builtin
    assert found["return"] is Keyword


def test_words_by_their_part() -> None:
    text = (
        "nestflow 1\n# c\n## d\nparam a : int = 1_000 in (0, 1e3)\nflow f(x) {\n"
        'assert a > 2 and not true, "s"\nz = own(x).w if training else g }\n'
    )
    found = kinds(text)
    assert found["# c"] is Comment.Single and found["## d"] is String.Doc
    assert found["param"] is Keyword.Declaration and found["a"] is Name and found["int"] is Keyword.Type
    assert found["1_000"] is Number.Integer and found["1e3"] is Number.Float and found["in"] is Keyword
    assert found["and"] is found["not"] is Operator.Word and found["true"] is Keyword.Constant
    assert found['"s"'] is String.Double and found["own"] is Name.Function and found["w"] is Name.Property
    assert found["if"] is found["else"] is found["assert"] is Keyword and found["f"] is Name.Function


@pytest.mark.parametrize(
    "text",
    ["", "level", "level f(x) { key ", "x = (1 + ]) \\ 'a\n}}}", "\x00 $ ?", '"open', "nestflow 1\nlevle x { évry 1 }"],
)
def test_broken_text_keeps_every_character(text: str) -> None:
    assert "".join(piece for _, _, piece in pieces(text)) == text


def test_wrong_characters_are_errors_and_the_rest_goes_on() -> None:
    found = pieces("nestflow 1\nx = $ 2\noutput x\n")
    assert [p for _, k, p in found if k is Error] == ["$"]
    assert (Name.Attribute, "output") in [(k, p) for _, k, p in found]


def test_its_suffix_is_its_own() -> None:
    from pygments.lexers import get_lexer_for_filename

    assert NestflowLexer.priority > type(get_lexer_for_filename("a.nl")).priority or (
        get_lexer_for_filename("a.nl").name == "nestflow"
    )


def test_it_knows_a_spec() -> None:
    assert NestflowLexer.analyse_text("# mine\nnestflow 1\n") > 0.5 > NestflowLexer.analyse_text("import torch")


def test_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    target = project["entry-points"]["pygments.lexers"]["nestflow"]
    assert target == f"{NestflowLexer.__module__}:{NestflowLexer.__name__}"
    assert any(d.startswith("pygments") for d in project["dependencies"])


def test_keywords_are_those_of_the_language() -> None:
    assert {*words.DECLARATIONS, *words.BRINGS, *words.CONTROL} - {"if", "else"} == OPENERS


# --- the terminal -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*SPECS, *sorted(specs_dir().rglob("*.yaml"))], ids=lambda p: p.name)
def test_colours_change_no_text(path: Path) -> None:
    import click

    text = path.read_text(encoding="utf-8")
    shown = highlight(text, path.name)
    assert click.unstyle(shown) == text and shown != text
    assert all(line.count("\x1b[0m") * 2 <= line.count("\x1b[") for line in shown.split("\n")), "an escape left open"


def test_styles_are_inherited() -> None:
    assert style_of(Keyword.Namespace) == style_of(Keyword) != style_of(Keyword.Type)
    assert style_of(Punctuation) == {}


# --- TextMate ---------------------------------------------------------------------------------------


FOLDER = Path(nestflow.__file__).parent / "editor" / "vscode"
ENGINE = Engine(grammar())  # what is in the folder is this, by test_folder_is_what_the_language_makes
# What a scope and a token type have in common; the first that fits counts.
SCOPES = (
    ("comment.line.documentation", "doc"),
    ("comment", "comment"),
    ("string", "string"),
    ("constant.numeric", "number"),
    ("constant.language", "constant"),
    ("storage.type", "type"),
    ("keyword.operator.word", "word operator"),
    ("keyword.operator", "operator"),
    ("keyword", "keyword"),
    ("support.type.property-name", "field"),
    ("support.function.builtin", "builtin"),
    ("entity.name", "head or call"),
    ("variable", "name"),
    ("punctuation", "punctuation"),
)
TYPES: dict[_TokenType, str] = {
    String.Doc: "doc",
    Comment: "comment",
    String: "string",
    Number: "number",
    Keyword.Constant: "constant",
    Keyword.Type: "type",
    Operator.Word: "word operator",
    Operator: "operator",
    Keyword: "keyword",
    Name.Attribute: "field",
    Name.Builtin: "builtin",
    Name.Class: "head or call",
    Name.Function: "head or call",
    Name: "name",
    Punctuation: "punctuation",
}


def of_scope(names: tuple[str, ...]) -> str | None:
    return next((part for prefix, part in SCOPES if names and names[-1].startswith(prefix)), None)


def of_type(kind: _TokenType | None) -> str:
    while kind not in TYPES:
        assert kind is not None
        kind = kind.parent
    return TYPES[kind]


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: p.stem)
def test_grammar_and_lexer_agree(path: Path) -> None:
    """On every character that is seen: what the line-based grammar guesses is what the parser's layout knows."""
    text = path.read_text(encoding="utf-8")
    scopes = ENGINE.scopes(text)
    assert len(scopes) == len(text)
    for start, kind, piece in pieces(text):
        if kind is not Whitespace:
            found = {of_scope(s) for s, c in zip(scopes[start:], piece) if not c.isspace()}
            assert found == {of_type(kind)}, (path.name, text.count("\n", 0, start) + 1, piece)


def test_grammar_knows_names_from_keywords() -> None:
    text = "level = 3\nkey, value = split(x, 2)\nx = f(key = 1,\n  every = 2)\n"
    roles = [of_scope(s) for s in ENGINE.scopes(text)]
    assert "keyword" not in roles and "field" not in roles


def test_folder_is_what_the_language_makes() -> None:
    if os.environ.get("NESTFLOW_UPDATE"):
        make.main()
    for name, text in make.files().items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, "run: python -m nestflow.editor.make"


def test_manifest_names_files_that_are_there() -> None:
    manifest = json.loads((FOLDER / "package.json").read_text(encoding="utf-8"))
    given = manifest["contributes"]
    (language,) = given["languages"]
    assert language["extensions"] == [".nl"] and manifest["version"] == nestflow.__version__
    for target in (language["configuration"], *(x["path"] for x in given["grammars"] + given["snippets"])):
        json.loads((FOLDER / target).read_text(encoding="utf-8"))
    assert given["grammars"][0]["scopeName"] == ENGINE.grammar["scopeName"]
    configuration = json.loads((FOLDER / language["configuration"]).read_text(encoding="utf-8"))
    assert configuration["comments"]["lineComment"] == "#"


def test_scopes_are_named_by_the_conventions() -> None:
    """The first parts are those that themes colour."""
    known = {"comment", "string", "constant", "storage", "keyword", "support", "entity", "variable", "punctuation"}
    text = json.dumps(ENGINE.grammar)
    names = {s for part in text.split('"name": "')[1:] for s in part.split('"')[0].split() if "." in s}
    assert {n.split(".")[0] for n in names} == known
    assert all(n.endswith(".nestflow") for n in names if n != ENGINE.grammar["scopeName"])


# --- snippets ---------------------------------------------------------------------------------------


def plain(body: str | list[str]) -> str:
    """A snippet with its places filled as they are offered."""
    import re

    text = body if isinstance(body, str) else "\n".join(body)
    text = re.sub(r"\$\{\d+:([^}]*(?:\[[^\]]*\])?[^}]*)\}", r"\1", text)
    return re.sub(r"\$\d+", "", text)


def test_the_whole_snippet_is_a_right_spec() -> None:
    nestflow.check(plain(make.snippets()["nestflow"]["body"]))


@pytest.mark.parametrize("name", [n for n in make.snippets() if n not in ("nestflow",)])
def test_every_snippet_parses(name: str) -> None:
    snippet = make.snippets()[name]
    body = plain(snippet["body"])
    if name in words.fields():
        text = f"nestflow 1\nlevel a {{ {body} 1 }}\n"
    elif name in OPENERS or name in ("if", "outer"):
        text = f"nestflow 1\n{body}\n"
    else:
        text = f"nestflow 1\nflow f(x) {{ return x |> {body} }}\n"
    parse_nl(text, name)
    assert snippet["description"] and snippet["prefix"] == name


def test_the_editor_room_needs_no_torch() -> None:
    code = (
        "import sys, nestflow.editor.make, nestflow.editor.lexer, nestflow.editor.terminal, nestflow.editor.schema; "
        "print(sorted({'torch', 'networkx', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
