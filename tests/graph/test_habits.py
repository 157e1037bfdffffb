"""What is written from the habit of other languages is told what is written here."""

from __future__ import annotations

import pytest

import nestflow
from nestflow.diagnostics.fixes import apply, edits_of
from tests.bad.cases import GOOD

HABITS = [
    ("  retain sig", "  retain = sig", "NF113", "write `retain sigmoid(linear(x, 1) + 6)`", True),
    ("  chunk 4\n", "  chunk: 4\n", "NF101", "a field is `chunk value`", True),
    ("  every 1 token\n  chunk 4\n", "  every 1 token, chunk 4\n", "NF101", "or with `;`", False),
    ("  every 1 token\n", "  // once a token\n  every 1 token\n", "NF108", "comments begin with `#`", True),
    ("every 1 step", "every step", "NF402", "`every 1 step`", False),
    ("  every 1 token\n", "  every token\n", "NF402", "`every 1 token`", False),
    ("int[T] in", "int[B, T] in", "NF201", "the batch axis is never written", False),
    ("repeat 2 {", "for i in 0..2 {", "NF101", "`repeat n as i { ... }`", False),
    ("adamw(1e-3)", "adamw(1e-3, betas = (0.9, 0.99))", "NF101", "a list is `[a, b]`", False),
    ("adamw(1e-3)", "clip_norm(1) |> adamw(1e-3)", "NF205", "`g |> clip_norm(…)`", False),
    ("shared emb", "emb", "NF301", "`shared NAME = embed(vocab, dim)`", False),
    ("rmsnorm(x))", "nn.RMSNorm(x))", "NF201", "without a module", False),
    ("mlp(depth = 2, expand = 2)", "sliding_window(16)", "NF201", "`cache`", False),
    ("weights(model)", "weights(net)", "NF201", "its flows are model", False),
    ("heads n_heads", "heads 3", "NF307", "a multiple of 3", False),
]


@pytest.mark.parametrize(("old", "new", "code", "help", "fixed"), HABITS, ids=[h[1].strip()[:24] for h in HABITS])
def test_told_what_is_written_here(old: str, new: str, code: str, help: str, fixed: bool) -> None:
    assert GOOD.count(old) >= 1
    text = GOOD.replace(old, new, 1)
    with pytest.raises(nestflow.NestflowError) as caught:
        nestflow.check(text)
    told = [d for d in caught.value.diagnostics if d.code == code and help in (d.help or "")]
    assert told, str(caught.value)
    if fixed:
        nestflow.check(apply(text, edits_of(told[0])))


def test_a_name_beside_its_field_is_a_name() -> None:
    """`key = ...; key key` gives a name and uses it: nothing is lost."""
    nestflow.check(GOOD.replace("  key x |> linear |> l2norm", "  key = x |> linear |> l2norm\n  key key"))


def test_a_quotient_over_two_lines_ends_with_its_sign() -> None:
    nestflow.check(GOOD.replace("param n_heads = 2", "param n_heads = 4 //\n  2"))


def test_under_let_of_yaml() -> None:
    spec = {
        "nestflow": 1,
        "inputs": {"k": "float[T, 8]"},
        "output": "store(k)",
        "levels": {"store(k)": {"let": {"retain": "0.9"}, "memory": "matrix", "key": "k", "value": "k", "query": "k",
                                "objective": "l2", "update": "gd(0.5)"}},
    }  # fmt: skip
    with pytest.raises(nestflow.NestflowError, match="NF113") as caught:
        nestflow.check(spec)
    assert "under `let:`" in str(caught.value)
