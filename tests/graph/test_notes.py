"""Notes are never errors, and are silent where a spec says what it means."""

from __future__ import annotations

import pytest

from tests.graph.building import graph, level


def noted(**fields: str) -> list[str]:
    g = level(**fields)
    assert all(n.severity == "note" and n.span is not None and n.help for n in g.notes)
    return [n.code for n in g.notes]


def test_a_delta_rule_in_chunks() -> None:
    assert noted(chunk="16") == ["NF451"]
    assert noted() == []
    assert noted(every="16 tokens") == []
    assert noted(chunk="16", objective="dot") == []
    assert noted(chunk="16", memory="mlp(depth = 2)") == []


def test_a_gate_after_the_error() -> None:
    assert noted(retain="sigmoid(linear(x, 1) + 6)") == ["NF452"]
    assert noted(retain="decay_first(sigmoid(linear(x, 1) + 6))") == []
    assert noted(retain="0.99", objective="dot") == []
    assert noted(retain="0.99", memory="mlp(depth = 2)") == [], "Titans means it"


MODEL = """
input x : float[T, 8]
output net(x){more}
flow net(z) {{ return z |> linear |> silu |> linear }}
flow other(z) {{ return linear(z) }}
level outer {{ every {every}; memory weights(net); objective mean({flow}(x) ^ 2) + mean(net(x)); update {update} }}
level m(x) {{ memory net; key l2norm(x); value x; query l2norm(x); objective l2; update gd(0.1) }}
"""


def of_model(**changes: str) -> list[str]:
    given = {"more": "", "every": "1 step", "flow": "net", "update": "gd(0.1)", **changes}
    return [n.code for n in graph(MODEL.format(**given) + rest_of(given)).notes]


def rest_of(given: dict[str, str]) -> str:
    lines = ""
    if given["flow"] == "other":
        lines += "level o { every never; memory weights(other) }\n"
    if given["more"]:
        lines += "level r { every never; memory rest(m) }\n"
    return lines


def test_a_memory_that_copies_a_flow() -> None:
    assert of_model(more=" + m(x)") == ["NF453"]


def test_a_flow_that_no_output_uses() -> None:
    assert of_model(flow="other") == ["NF454"]


@pytest.mark.parametrize(
    ("update", "codes"),
    [
        ("gd(0.1)", ["NF455"]),
        ("momentum(0.1, 0.9)", ["NF455"]),
        ("(g / n_ticks) |> gd(0.1)", []),
        ("adam(1e-3)", []),
        ("g |> clip_norm(1) |> gd(0.1)", []),
        ("lion(1e-3)", []),
    ],
)
def test_a_period_that_sums(update: str, codes: list[str]) -> None:
    assert of_model(every="4 steps", update=update) == codes
    assert of_model(every="1 step", update=update) == []


# --- numbers and targets that are seldom meant ----------------------------------------------------------------

READER = """
input tokens : int[T] in [0, 16)
input other : int[T] in [0, 16)
output model(tokens)
flow model(tokens) {{ return tokens |> embed(16, 8) |> linear(16) }}
level outer {{ memory weights(model); objective cross_entropy(model(tokens), {target}); update {update} }}
"""


def odd(text: str) -> list[str]:
    return [n.code for n in graph(text).notes if n.code in ("NF461", "NF462", "NF463")]


@pytest.mark.parametrize(
    ("update", "code"),
    [
        ("adam(lr = -1)", ["NF461"]),
        ("g |> clip_norm(1) |> adamw(lr = cosine(-1e-3, warmup = 5))", ["NF461"]),
        ("gd(-0.5)", ["NF461"]),
        ("adam(0)", []),
        ("adam(1e-3)", []),
        ("-0.1 * g", []),
    ],
)
def test_a_rate_below_zero(update: str, code: list[str]) -> None:
    assert odd(READER.format(target="next(tokens)", update=update)) == code


@pytest.mark.parametrize(
    ("target", "code"), [("tokens", ["NF463"]), ("next(tokens)", []), ("other", []), ("tokens, other > 3", [])]
)
def test_a_target_that_the_model_has_read(target: str, code: list[str]) -> None:
    assert odd(READER.format(target=target, update="adam(1e-3)")) == code


@pytest.mark.parametrize(
    ("retain", "code"),
    [("1.5", ["NF462"]), ("-0.1", ["NF462"]), ("decay_first(2)", ["NF462"]), ("1", []), ("0", []), ("kl(1.5)", [])],
)
def test_a_gate_that_is_no_part_of_one(retain: str, code: list[str]) -> None:
    g = level(update="gd(0.1)", objective="dot", retain=retain)
    assert [n.code for n in g.notes if n.code == "NF462"] == code
