"""What `nestflow explain` says of what takes more than one pass, or goes piece by piece."""

from __future__ import annotations

from pathlib import Path

import pytest

import nestflow
from nestflow.lowering.explain import explain

EXAMPLES = Path(__file__).parents[2] / "examples"
READS = """nestflow 1
input x : float[T, 4]
output f(x)
level m(x) { chunk 4; memory matrix; key x; value linear(x); query x; objective l2; update gd(0.1) }
flow f(x) { shared s = m; h = s.read(x); return s(x + h) }
"""


def blocks(text: str) -> dict[str, str]:
    """The blocks of an explanation, each on one line, by their first line."""
    found = [b.partition("\n") for b in explain(nestflow.compile(text)).split("\n\n")]
    return {name: " ".join(rest.split()) for name, _, rest in found}


@pytest.mark.parametrize(
    ("chunk", "tokens", "slow"),
    [("", "one token", True), ("chunk 4;", "4 tokens", True), ("chunk 32;", "32 tokens", False)],
)
def test_a_level_that_is_read_makes_pieces(chunk: str, tokens: str, slow: bool) -> None:
    said = blocks(READS.replace("chunk 4;", chunk))["f"]
    assert f"{tokens} at a time, one piece after the other: `s` is read" in said
    assert ("make it slow" in said) == slow
    assert "f" not in blocks(READS.replace("h = s.read(x); return s(x + h)", "return s(x)"))


@pytest.mark.parametrize(("every", "slow"), [(1, "token by token"), (4, "4 tokens at a time"), (16, None)])
def test_short_segments_are_told(every: int, slow: str | None) -> None:
    text = f"""nestflow 1
input x : float[T, 4]
output net(x)
flow net(x) {{ return linear(x) }}
level fast {{ every {every} tokens; memory weights(net); objective mean(square(net(x) - next(x))); update gd(0.1) }}
"""
    said = blocks(text)["fast"]
    assert (f"the model runs {slow}" in said) if slow else "make it slow" not in said


@pytest.mark.parametrize(
    ("example", "level", "gradient", "said"),
    [  # an MLP of 4 → 32 → 3 with biases: 259 numbers
        ("maml", "task", "", "259 numbers for each task; 5 runs forward and backward of its objective"),
        ("maml", "task", "", "training keeps 5 runs and differentiates twice"),
        ("maml", "task", "gradient truncate(2)", "training keeps 2 runs and differentiates twice"),
        ("maml", "task", "gradient stop", "training keeps none of them"),
        ("imaml", "task", "", "training takes 10 products with the Hessian and keeps none"),
        ("sam", "uphill", "", "for the batch; one run forward and backward"),
    ],
)
def test_levels_inside_a_step_are_priced(example: str, level: str, gradient: str, said: str) -> None:
    text = (EXAMPLES / f"{example}.nl").read_text(encoding="utf-8")
    text = text.replace("  update gd(rate)\n", f"  update gd(rate)\n  {gradient}\n") if gradient else text
    assert said in blocks(text)[level]


def test_the_memories_of_a_rule_are_counted() -> None:
    """Adam keeps two more numbers for each of the 259."""
    text = (EXAMPLES / "maml.nl").read_text(encoding="utf-8").replace("  update gd(rate)\n", "  update adam(rate)\n")
    assert "777 numbers for each task (2 of the rule for each of its own)" in blocks(text)["task"]


def test_an_estimated_gradient_is_priced() -> None:
    text = """nestflow 1
input x : float[4]
output net(x)
flow net(x) { return linear(x) }
level outer { every 1 step; memory weights(net); objective es(mean(square(net(x))), 0.1, pairs = 8); update gd(0.1) }
"""
    assert "its gradient is estimated: 17 passes forward in each step, none backward" in blocks(text)["outer"]


ARGUE = """nestflow 1
input x : float[T, 8]
output pair(x)
level pair(x) {
  k = x |> linear |> l2norm
  memory fast : mlp(depth = 2) { every 1 token; chunk 8; key k; value x; update momentum(lr = 0.1, beta = 0.5) }
  memory slow : matrix { every 1 token; key k; value VALUE; update gd(0.1) }
  objective l2
  return fast(k) + slow(k)
}
"""


def test_a_memory_that_waits_for_another_says_so():
    both = explain(nestflow.compile(ARGUE.replace("VALUE", "x - fast(k)")))
    assert "one tick at a time, because `slow` beside it cannot take more" in both
    assert "delta: its error looks at what `fast` has stored" in both
    alone = explain(nestflow.compile(ARGUE.replace("VALUE", "x")))
    assert alone.count("8 ticks at once") == 2 and "one tick" not in alone
