"""Files and texts: what is read, what is refused, and with which words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nestflow.diagnostics.core import NestflowError
from nestflow.language import tree as T
from nestflow.language.nl import parse_expression, parse_nl
from nestflow.language.reader import looks_like_yaml, read_file, read_text
from nestflow.language.yaml import from_dict, parse_yaml


def refused(path: Path, code: str) -> str:
    with pytest.raises(NestflowError) as caught:
        read_file(path)
    assert caught.value.diagnostics[0].code == code
    return str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "titans.nl").write_text("nestflow 1\nx = 1\n")
    assert "titans.nl" in refused(tmp_path / "titan.nl", "NF001")
    refused(tmp_path / "no folder" / "a.nl", "NF001")
    refused(tmp_path / ("a" * 300 + ".nl"), "NF001")
    refused(tmp_path / "a\0.nl", "NF001")
    assert "titans.nl" in refused(tmp_path, "NF002")
    (tmp_path / "loop.nl").symlink_to(tmp_path / "loop.nl")
    refused(tmp_path / "loop.nl", "NF001")
    refused(Path("/dev/null"), "NF003")
    os.mkfifo(tmp_path / "pipe.nl")
    refused(tmp_path / "pipe.nl", "NF003")


@pytest.mark.parametrize(
    "data, code",
    [
        (b"nestflow 1\n" + b"#" * 1_000_001, "NF004"),
        (b"nestflow 1\nx = \0", "NF005"),
        (b"nestflow 1\nx = \xff", "NF006"),
        ("nestflow 1\n".encode("utf-16"), "NF007"),
        ("nestflow 1\n".encode("utf-32-le"), "NF007"),
        (b"", "NF102"),
    ],
)
def test_bytes_that_are_no_spec(tmp_path: Path, data: bytes, code: str) -> None:
    (tmp_path / "a.nl").write_bytes(data)
    refused(tmp_path / "a.nl", code)


def test_the_place_of_a_wrong_byte(tmp_path: Path) -> None:
    (tmp_path / "a.nl").write_bytes("nestflow 1\nα = ".encode() + b"\xe9")
    assert "a.nl:2:5" in refused(tmp_path / "a.nl", "NF006")


def test_a_mark_at_the_start_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.nl").write_bytes(b"\xef\xbb\xbfnestflow 1\nx = 1\n")
    assert len(read_file(tmp_path / "a.nl").body) == 1


def test_a_suffix_tells_the_front_end(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("nestflow: 1\nlet: {x: 1}\n")
    (tmp_path / "a.txt").write_text("nestflow 1\n")
    assert read_file(tmp_path / "a.yaml") == parse_nl("nestflow 1\nx = 1", "a.nl")
    refused(tmp_path / "a.txt", "NF008")


@pytest.mark.parametrize(
    "text, yaml",
    [
        ("nestflow 1", False),
        ("# c\nnestflow 1\nx = {a: 1}", False),
        ("nestflow: 1", True),
        ("# c\n\nnestflow: 1", True),
        ("---\nnestflow: 1", True),
        ("{nestflow: 1}", True),
        ('"nestflow": 1', True),
        ("nestflow 1\nparam x : int = 3", False),
        ("", False),
    ],
)
def test_telling_the_front_ends_apart(text: str, yaml: bool) -> None:
    assert looks_like_yaml(text) is yaml


def test_scalars_are_those_of_the_expression_grammar() -> None:
    spec = parse_yaml(
        "nestflow: 1\nlet:\n  a: 3e-4\n  b: on\n  c: '3'\n  d: true\n  e: 1_000\n  f: no\n  g: 'null'\n  h: '\"s\"'\n",
        "a.yaml",
    )
    values = [s.value for s in spec.body if isinstance(s, T.Assign)]
    assert values == [
        T.Number(3e-4),
        T.Name("on"),
        T.Number(3),
        T.Bool(True),
        T.Number(1000),
        T.Name("no"),
        T.Name("null"),
        T.String("s"),
    ]


def test_places_in_yaml() -> None:
    text = (
        'nestflow: 1\nlevels:\n  a(x):\n    key: \'f("a", bb)\'\n    value: "f(\\"a\\", bb)"\n'
        "    query: >-\n      f(a,\n      bb)\n    objective: f(a,\n      bb)\n"
    )
    spec = parse_yaml(text, "a.yaml")
    level = spec.body[0]
    assert isinstance(level, T.Level)
    for field in level.body:
        assert isinstance(field, T.Field) and isinstance(field.value, T.Call)
        last = field.value.args[1].span
        assert last is not None and last.text == "bb"


def test_a_dict_is_the_same_tree() -> None:
    d = {
        "nestflow": 1,
        "params": {"dim": {"value": 256, "in": "[1, 65536]"}, "on": True, "rate": 1e-5},
        "levels": {
            "a(x)": {
                "every": "1 token",
                "key": ["x", "y"],
                "update": {"adam": {"lr": 0.01}},
                "memory": 'weights(m, "**")',
            }
        },
        "flows": {"f(x)": ["x = g(x)", {"repeat 3 as i": ["x = h(x)"]}, "return x"]},
    }
    assert from_dict(d) == parse_nl(
        "nestflow 1\nparam dim = 256 in [1, 65536]; param on = true; param rate = 1e-5\n"
        'level a(x) { every 1 token; key [x, y]; update adam(lr = 0.01); memory weights(m, "**") }\n'
        "flow f(x) { x = g(x); repeat 3 as i { x = h(x) }; return x }",
        "a.nl",
    )


def test_statements() -> None:
    spec = parse_nl(
        "nestflow 1\nlevel a {\n every never\n every 4 updates of fast.b\n step x\n"
        " if c { key 1 } else if d { key 2 }\n"
        " weight {a: 1}\n}\noutput model(tokens)",
        "a.nl",
    )
    output, level = spec.body
    assert output == T.Field("output", T.Call(T.Name("model"), (T.Name("tokens"),)))
    assert isinstance(level, T.Level)
    assert level.body[0] == T.Field("every", T.Name("never"))
    assert level.body[1] == T.Field("every", T.Number(4), "updates", "fast.b")
    assert level.body[2] == T.Field("step", T.Name("x"))
    assert level.body[3] == T.If(
        T.Name("c"), (T.Field("key", T.Number(1)),), (T.If(T.Name("d"), (T.Field("key", T.Number(2)),)),)
    )
    assert level.body[4] == T.Field("weight", T.Record((("a", T.Number(1)),)))


def test_precedence() -> None:
    a, b, c = T.Name("a"), T.Name("b"), T.Name("c")
    for text, tree in {
        "-a ^ b": T.Unary("-", T.Binary("^", a, b)),
        "a ^ b ^ c": T.Binary("^", a, T.Binary("^", b, c)),
        "a - b - c": T.Binary("-", T.Binary("-", a, b), c),
        "not a == b": T.Unary("not", T.Binary("==", a, b)),
        "a or b and c": T.Binary("or", a, T.Binary("and", b, c)),
        "a |> b if c else a": T.Conditional(T.Pipe((a, b)), c, a),
        "a |> b.c(a)": T.Pipe((a, T.Call(T.Attribute(b, "c"), (a,)))),
        "(a |> b) |> c": T.Pipe((T.Pipe((a, b)), c)),
        "a if b else c if a else b": T.Conditional(a, b, T.Conditional(c, a, b)),
        "a[b:, :c]": T.Index(a, (T.Slice(b, None), T.Slice(None, c))),
    }.items():
        assert parse_expression(text) == tree, text


def test_comments_and_docs_stay_with_their_statements() -> None:
    spec = parse_nl(
        "# top\n## doc of all\nnestflow 1\n# one\n## d1\n## d2\nx = 1  # end\ny = 2  ## d3\nflow f(x) {  # head\n"
        "  return f(  # inside\n    x)\n  # last\n}\n# foot",
        "a.nl",
    )
    x, y, f = spec.body
    assert (spec.header_comments, spec.doc, spec.footer_comments) == (("top",), "doc of all", ("foot",))
    assert (x.comments, x.doc, x.trailing) == (("one",), "d1\nd2", "end")
    assert (y.doc, f.trailing, f.closing) == ("d3", "head", ("last",))
    assert f.body[0].trailing == "inside"  # type: ignore[attr-defined]


def test_read_text_takes_both() -> None:
    assert read_text("nestflow 1\nx = 1") == read_text("nestflow: 1\nlet: {x: 1}")
