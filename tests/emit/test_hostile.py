"""Names of files and docs stand in comments and docstrings of generated code: nothing in them may become code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import nestflow

SPEC = """nestflow 1
input x : float[T, 4]
output f(x)
flow f(x) { return m(linear(x, 4)) }
level m(x) { every 1 token; memory matrix; key x; value x; query x; objective l2; update adam(0.1) }
loss = mean(square(f(x)))
## says "hi"
level outer { every 1 step; memory weights(f); objective loss; update adam(1e-3) }
"""
HOSTILE = [
    'a"""\rfrom __future__ import annotations\rboom()\r"""',
    "a\r    boom()#",
    "a\rboom()#",
    'a"""\rboom()\r"""',
    'ends in"',
    '"""',
    "\\",
]


def sources(b: nestflow.Bundle) -> list[str]:
    return [b.source, b.optim_source, b.standalone()]


def calls(source: str) -> set[str]:
    return {n.func.id for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}


@pytest.mark.parametrize("name", [*HOSTILE, "\u2028boom()"])
def test_the_name_of_a_file_is_no_code(name: str, tmp_path: Path) -> None:
    file = tmp_path / f"{name}.nl"
    file.write_text(SPEC, encoding="utf-8")
    for source in sources(nestflow.compile(file)):
        assert "boom" not in calls(source)
        assert source.isascii() or all(c.isprintable() or c == "\n" for c in source)


@pytest.mark.parametrize("doc", [*HOSTILE, 'x"""\nboom()\n"""', 'x\n    boom()\n"""'])
def test_a_doc_is_no_code(doc: str) -> None:
    fields = {"memory": "matrix", "key": "x", "value": "x", "query": "x", "objective": "l2", "update": "adam(0.1)"}
    spec = {
        "nestflow": 1,
        "doc": doc,
        "inputs": {"x": "float[T, 4]"},
        "output": "f(x)",
        "let": {"loss": "mean(square(f(x)))"},
        "levels": {
            "m(x)": {"doc": doc, **fields},
            "outer": {
                "doc": doc, "every": "1 step", "memory": "weights(f)", "objective": "loss", "update": "adam(0.1)"
            },
        },
        "flows": {"f(x)": "m(linear(x, 4))"},
    }  # fmt: skip
    for source in sources(nestflow.compile(spec)):
        assert "boom" not in calls(source)
