"""The smallest specs of the mistakes that random ones have found."""

from __future__ import annotations

from dataclasses import replace

import pytest

import nestflow
from nestflow.diagnostics.core import NestflowError
from tests.properties import checks
from tests.properties.checks import Case
from tests.properties.specs import Spec

MLP = "memory mlp(depth = 2, expand = 1); key x; value x |> linear; query x;"
MATRIX = "memory matrix; key x |> l2norm; value x |> linear; query x;"
LEVELS = {
    "a rate counts updates, tensor by tensor": f"{MLP} objective l2; update gd(0.1 / (t + 2))",
    "a rate counts updates, once in three": f"every 3 tokens; chunk 6; {MLP} objective l2; update gd(0.1 / (t + 2))",
    "t of a gate counts updates": f"every 2 tokens; chunk 4; {MLP} objective l2; update gd(0.1); retain 1 - 0.1 / t",
    "a norm of zero": "memory mlp(depth = 2, expand = 1); key x; value memory(x); query x |> linear;"
    " objective norm(M(key) - value); update gd(0.1)",
    "adam where the gradient has been zero": "memory matrix; key x |> previous; value x |> linear; query x;"
    " objective l2; update adam(0.01)",
    "rms of a gradient that is zero": "memory matrix; key x |> previous; value x |> linear; query x; objective l2;"
    " update -0.01 * g / (0.1 + rms(g))",
    "a number before dgd": f"chunk 4; {MLP} objective l2; update (g * 0.5) |> dgd(0.1)",
    "a number before the printed dgd": f"chunk 4; {MLP} objective l2; update (g * 0.5) |> dgd(0.1, exact = false)",
    "a number before dgd on a matrix": f"{MATRIX} objective l2; update (g * 0.5) |> dgd(0.1)",
    "the mean gradient": f"every 2 tokens; chunk 4; {MLP} objective l2; update (g / n_ticks) |> gd(0.1)",
    "the mean gradient of a recurrence": f"every 2 tokens; {MATRIX} objective dot; update (g / n_ticks) |> gd(0.1)",
    "keys of length one, however short": "memory matrix; key 0.001 * x; value x |> linear; query x; objective l2;"
    " update dgd(0.1, normalize = true)",
    "the length of the start": f"chunk 2; {MLP} objective l2; update gd(0.1); project w * norm(w0) / norm(w)",
    "a rate from outside the loop, a gate from inside": f"chunk 3; {MLP} objective l2;"
    " update nesterov(0.1 * sigmoid(linear(x, 1)), 0.9); retain 0.9 + 0.1 * sigmoid(linear(memory(x), 1))",
    "one constant gate, in pieces and over the whole call": """chunk 3; key x; value x |> linear; objective l2
      memory a : mlp(depth = 2, expand = 1) { update gd(0.1) }
      memory b : mlp(depth = 2, expand = 1) { update nesterov(0.1 * sigmoid(mean(a(x))), 1) }
      return a(x) + b(x)""",
    "a cache of what a memory recalls": """key x; value x |> linear; objective l2; update gd(0.1)
      memory store : mlp(depth = 2, expand = 1) { read before }
      memory seen : cache(window = 3) { key store(x); value store(x |> linear) }
      return store(x) + seen(x)""",
    "one copy for the model of a number": "chunk 2; per model; reset never; memory scalar; value mean(x); objective l2;"
    " update gd(0.1); return y * x",
    "one copy for the model with a start that is computed": "per model; reset never; memory matrix(5, 5);"
    " key x |> l2norm; value x |> linear; query x; objective l2; update gd(0.1); init 0.3 * eye + learned(normal(0.3))",
}

NAMED = """every 1 token; {}; key x; objective l2; update momentum(0.1, 0.5)
  memory a : matrix {{ value {}; {} }}
  memory b : matrix {{ value a(x) }}
  return a(x) + b(x)"""
LOOKS = "x |> linear |> previous"
TWO = """{}; key x |> l2norm; objective l2; update {}
  memory a : mlp(depth = 2, expand = 1) {{ value x |> linear; {} }}
  memory b : mlp(depth = 2, expand = 1) {{ value x |> linear; {} }}
  return {}"""
NUMBER = "memory matrix(1, 5); key x |> l2norm; value {}; query x; objective l2; update {}"
LEVELS |= {
    "a delta rule that learns a number": NUMBER.format("mean(x)", "dgd(0.1)"),
    "a delta rule that learns a constant": NUMBER.format("0.5", "gd(0.1)"),
    "what a memory recalls is another's query, at ticks between updates": TWO.format(
        "every 3 tokens", "gd(0.1)", "", "", "a(b(x))"
    ),
    "steps of one of two memories are constants": TWO.format(
        "every 1 token; chunk 2", "gd(0.1)", "gradient stop", "", "a(x) + b(x)"
    ),
    "one of two memories starts anew": TWO.format(
        "every 1 token; chunk 3", "adam(0.1 / (t + 1))", "reset each(chunk)", "", "a(x) + b(x)"
    ),
    "one of two memories learns twice a tick": TWO.format("every 1 token", "adam(0.1)", "", "rounds 2", "a(x) + b(x)"),
    "a target of one query, made with the memories that two keys are learned by": """chunk 2; objective l2
      memory a : mlp(depth = 2, expand = 1) { key x; value a(x |> linear); update gd(0.1) }
      memory b : mlp(depth = 2, expand = 1) { key x |> l2norm; value b(x |> linear); update gd(0.1) }
      return a(x) + b(x)""",
    "a reset leaves look-back alone": NAMED.format("chunk 2", LOOKS, "reset each(chunk)"),
    "a reset where a condition holds leaves look-back alone": NAMED.format(
        "chunk 1", LOOKS, "reset where(sum(x |> linear(1) |> previous) > 0.1)"
    ),
    "a reset leaves look-back alone, in a flow that a field calls": NAMED.format(
        "chunk 2", "lagged(x)", "reset each(chunk)"
    ),
}
READS = """
loss = square(model(x))
level reads { every 3 tokens; memory weights(model, "linear.**"); objective loss; update gd(0.1) }
level outer { every 1 step; memory weights(model); objective loss; update gd(0.1) }
"""
READ = {  # the level, in a model whose weights learn while it reads
    "a reset in a segment that is run again": f"chunk 2; {MATRIX} objective l2; update gd(0.1); reset each(chunk)",
    "a condition resets in a segment that is run again": f"chunk 3; {MATRIX} objective l2; update gd(0.1); "
    "reset where(linear(x, 1) > 0.2)",
    "caches of rows that begin apart": "memory cache; key x; value x |> linear; query x",
}

STREAM = {  # the rule of weights that learn while it reads, one copy for each stream
    "a sequence that begins where a segment ends": "update gd(0.1); retain 0.9; per stream; reset never",
}


def spec_of(level: str, training: bool = False) -> Spec:
    every = "" if level.startswith("every") else "every 1 token; "
    text = f"nestflow 1\ninput x : float[T, 5]\noutput first(x)\nlevel first(x) {{\n{every}{level}\n}}\n"
    text += "flow lagged(x) { return x |> linear |> previous }\n" if "lagged(" in level else ""
    return Spec(text, ("first",), tokens=False, batch=2, ticks=9, cuts=(1, 5), seed=3, training=training)


@pytest.mark.parametrize("name", LEVELS)
def test_found_before(name: str) -> None:
    case = Case(spec_of(LEVELS[name]))
    for check in checks.PROPERTIES:
        check(case)


@pytest.mark.parametrize("name", READ)
def test_found_beside_weights_that_learn_while_reading(name: str) -> None:
    spec = spec_of(READ[name])
    model = "flow model(x) { x = x |> linear; return x + first(rmsnorm(x)) }"
    case = Case(replace(spec, text=spec.text.replace("output first(x)", "output model(x)") + model + READS))
    for check in checks.PROPERTIES:
        check(case)


@pytest.mark.parametrize("name", STREAM)
def test_sequences_begin_in_streams(name: str) -> None:
    spec = spec_of(f"{MATRIX} objective l2; update gd(0.1)")
    model = "flow model(x) { x = x |> linear; return x + first(rmsnorm(x)) }" + READS.replace(
        "update gd(0.1)", STREAM[name], 1
    )
    text = spec.text.replace("output first(x)", "output model(x)") + model
    for cut in (2, 3):
        checks.sequences_begin_in_rows(Case(replace(spec, text=text, cuts=(cut,))))


def test_rows_at_several_places_are_one_pass_of_training() -> None:
    """They are computed apart, and draw by one step."""
    case = Case(spec_of(f"{MATRIX.replace('x |> l2norm', 'x |> dropout(0.3)')} objective l2; update gd(0.1)", True))
    checks.sequences_begin_in_rows(case)


def test_draws_count_the_sequence() -> None:
    """Those of a memory that goes on beyond its sequence too."""
    more = "objective l2; update gd(0.1); per stream; reset never"
    case = Case(spec_of(f"{MATRIX.replace('x |> l2norm', 'x |> dropout(0.3)')} {more}", training=True))
    checks.sequences_begin_in_rows(case)


def test_t_of_a_gate_is_one_at_the_first_update() -> None:
    """`retain 0 if t == 1 else 1` empties the memory at its first update, at tick 4, and at no other."""
    level = f"every 4 tokens; {MATRIX} init learned; objective dot; update gd(0); retain 0 if t == 1 else 1"
    case = Case(spec_of(level))
    y = case.full[0]
    assert (y[:, :3].abs().amax((0, 2)) > 0).all()
    assert y[:, 3:].abs().max() == 0
    checks.compiled_is_interpreted(case)


def test_a_cache_is_recalled_in_return_alone() -> None:
    text = spec_of("""objective l2; update gd(0.1)
      memory store : matrix { key seen(x) |> l2norm; value x }
      memory seen : cache { key x; value x }
      return store(x) + seen(x)""").text
    with pytest.raises(NestflowError, match="cache `seen`"):
        nestflow.compile(text)


@pytest.mark.parametrize(
    ("memory", "outside"),
    [
        ("muon(0.1)", "muon(0.01)"),
        ("soap(0.1)", "soap(0.01)"),
        ("g |> clip_norm(1) |> shampoo(0.1)", "g |> clip_norm(1) |> shampoo(0.01)"),
    ],
)
def test_a_memory_and_weights_that_learn_by_one_rule(memory: str, outside: str) -> None:
    """Both stand in one file, and call functions of their own: the second one's once took the place of the first's."""
    spec = spec_of(f"{MATRIX} objective l2; update {memory}")
    model = "flow model(x) { x = x |> linear; return x + first(rmsnorm(x)) }" + READS.replace("gd(0.1)", outside, 1)
    checks.compiled_is_interpreted(
        Case(replace(spec, text=spec.text.replace("output first(x)", "output model(x)") + model))
    )


def test_soap_has_gradients_from_its_first_update_on() -> None:
    """There U and V are zeros, and `qr` of zeros stands in the branch that is not taken."""
    checks.compiled_is_interpreted(Case(spec_of(f"{MATRIX} objective l2; update soap(0.1)")))
