"""Constructs of the language one by one, in specs written by hand: what must hold for every spec holds for these."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.properties.checks import PROPERTIES, Case
from tests.properties.specs import Spec

SPECS = {
    "project": """
        heads 2; every 2 tokens; chunk 4; memory mlp(depth = 2, expand = 1)
        key k; value linear(x); query q; objective l2; update momentum(0.05, 0.9); retain 0.95; gradient stop
        project w * (norm(w0) / norm(w)) * (1 + 0.1 * sigmoid(linear(x, 1)) / (t + 1))
        return y |> merge_heads |> linear(12)
    """,
    "project of several": """
        every 2 tokens; heads 2; objective l2; update g |> clip_norm(1) |> gd(0.1)
        memory one : matrix { key k; value linear(x); init learned; project w |> ball(0.5) }
        memory two : mlp(depth = 1, bias = true) { key k; value one(k); project w / max(norm(w, axis = -1), 1) }
        return (one(q) + two(q)) |> merge_heads |> linear(12)
    """,
    "kl": """
        heads 2; every 2 tokens; chunk 4; memory mlp(depth = 2, expand = 1, bias = true)
        key k; value linear(x); query q; objective l2; update momentum(0.1, 0.9); retain kl(0.95, 2)
        return y |> merge_heads |> linear(12)
    """,
    "lq": """
        objective huber(0.5); update g |> clip_norm(1) |> dgd(0.1)
        memory one : matrix { key k; value linear(x); init learned; retain lq(0.9 + 0.1 * sigmoid(linear(x, 1)), 3) }
        memory two : mlp(depth = 1) { key k; value one(k); chunk 3; retain lq(0.95); read before }
        memory three : matrix { key k; value linear(x); objective dot; update gd(0.1); retain kl(0.95) }
        return (one(q) + two(q) + three(q)) |> linear(12)
    """,
    "windowed": """
        heads 2; every 2 tokens; chunk 4; memory mlp(depth = 2, expand = 1, bias = true)
        key k |> short_conv(2); value linear(x); query q; weight sigmoid(linear(x, 1)); update momentum(0.02, 0.9)
        objective windowed(huber(0.5), 3, weight = learned(3, init = ones)[age] * sigmoid(linear(x, 1))); retain 0.95
        return y |> merge_heads |> linear(12)
    """,
    "windows of recalls": """
        objective l2; update gd(0.05); chunk 2
        memory one : mlp(depth = 1) { key k; value linear(x) }
        memory two : matrix {
          key k; value one(q); init learned; retain lq(0.95); update muon(0.02); chunk 1
          objective windowed(sum(square(M(key) - value) * sigmoid(linear(x, 12))) / t, 4)
        }
        return (one(q) + two(q)) |> linear(12)
    """,
    "gradients of the tick": """
        heads 2; objective l2; chunk 4
        memory two : matrix {
          key k; value one.g @ linear(x, 6); retain sigmoid(3 - mean(square(one.g))); every 2 tokens
          update (g / n_ticks) |> gd(0.2 * sigmoid(mean(one.g)))
        }
        memory one : matrix { key k; value linear(x); init learned; update gd(0.1); retain 0.9 }
        return (one(q) + two(q) * mean(square(two.g))) |> merge_heads |> linear(12)
    """,
    "gradients at a decayed state": """
        objective l2; update gd(0.3)
        memory three : mlp(depth = 2, expand = 1) { key k; value two(k); weight sigmoid(mean(one.g)); read before }
        memory two : matrix { key k |> short_conv(2); value linear(x); retain decay_first(sigmoid(mean(one.g) + 2)) }
        memory one : matrix { key k; value linear(x); retain decay_first(0.9); when mean(x) > 0 }
        return (two(q) + three(q) + three.g.linear @ q) |> linear(12)
    """,
    "gradients without a state": """
        heads 2; memory matrix; key k; value linear(x); query q; objective dot; update gd(0.2); retain 0.9
        return (y + memory.g @ q) |> merge_heads |> linear(12)
    """,
    "when": """
        heads 2; every 2 tokens; chunk 4; memory mlp(depth = 2, expand = 1)
        key k; value linear(x); query q; objective l2; update (g / n_ticks) |> adam(0.02); retain 0.95
        when norm(M(key) - value) > 1.2
        return y |> merge_heads |> linear(12)
    """,
    "when of several": """
        objective l2; heads 2; weight sigmoid(linear(x, 1)); when mean(x) > 0 or head == 1
        memory one : matrix { key k; value linear(x); update dgd(0.1); retain decay_first(0.9) }
        memory two : matrix { key k; value one(k); update m3(0.01, 0.9, 0.9, 0.99, 0.1, period = 2); chunk 2 }
        memory three : mlp(depth = 1) { key k; value linear(x); update gd(0.1 / t); chunk 3; when sum(k) > 0
          init learned }
        return (one(q) + two(q) + three(q)) |> merge_heads |> linear(12)
    """,
    "when in closed form": """
        objective l2; heads 2; when mean(x) > 0 or head == 1; update momentum(0.05, 0.9); retain 0.9
        memory one : matrix { key k; value linear(x); gradient stop }
        memory two : mlp(depth = 2, expand = 1) { key k; value one(k); chunk 4; when sum(k) > 0 }
        memory three : matrix { key k; value linear(x); objective dot
          retain 0.5 + 0.5 * sigmoid(linear(x, 6)); update gd(0.1) }
        return (one(q) + two(q) + three(q)) |> merge_heads |> linear(12)
    """,
    "poly": """
        heads 2; chunk 4; memory matrix; objective windowed(l2, 3); update muon(0.02); retain 0.95; init learned
        key k |> poly(3); value linear(x); query q |> poly(3)
        return y |> merge_heads |> linear(12)
    """,
    "without a key": """
        heads 2; every 2 tokens; chunk 4; objective l2; update momentum(0.1, 0.9)
        memory one : vector { value linear(x); retain 0.9 + 0.1 * sigmoid(linear(x, 6)) }
        memory two : vector(6) { objective inner(M, linear(x)) + 0.5 * sum(square(M - one)); init learned }
        memory three : scalar { value sum(k); when mean(x) > 0; project max(w, -1) }
        memory four : like(outer_product(k, k)) { value outer_product(k, q); objective sum(square(M - value))
          update adam(0.01) }
        return (one + two() * three + four @ q) |> merge_heads |> linear(12)
    """,
    "never": """
        objective l2; update gd(0.05)
        memory one : mlp(depth = 2) { key k; value linear(x); every never }
        memory two : matrix { key k; value one(k) }
        memory three : vector(12) { every never; init learned }
        return (one(q) + two(q) + three) |> linear(12)
    """,
    "reset": """
        heads 2; objective l2; value linear(x); reset each(chunk); update momentum(0.1, 0.9); retain 1 - 0.1 / (t + 1)
        memory one : matrix { key k; chunk 4; init learned }
        memory two : mlp(depth = 2, expand = 1) { key k * sigmoid(linear(x, 1) / t); chunk 4; every 2 tokens
          update adam(0.02) }
        memory three : matrix { key k; reset each(two); update gd(0.1 / t); objective dot; retain 0.9 }
        memory four : matrix { key k; chunk 2; reset each(chunk, keep = rule); update adam(0.02); when mean(x) > 0 }
        return (one(q) + two(q) + three(q) + four(q)) |> merge_heads |> linear(12)
    """,
    "reset where": """
        heads 2; objective l2; value linear(x); reset where(mean(x) > 0.1)
        memory one : matrix { key k; init learned; update momentum(0.1, 0.9); retain kl(0.9) }
        memory two : vector { update gd(0.1); reset where(sum(k) > 0); read before }
        return (one(q) + two) |> merge_heads |> linear(12)
    """,
    "matrices": """
        heads 2; objective l2; update gd(0.05)
        gram = outer_product(k, k) + diag(0.5 + sigmoid(linear(x, 6)))
        memory one : matrix { key solve(gram, k) |> l2norm; value linear(x); retain decay_first(0.9) }
        memory two : mlp(depth = 2, expand = 1) { key k; value root(gram, -2) @ one(k); chunk 4 }
        memory three : like(gram) { value gram; objective square_distance(solve(M + eye(6), q), value @ q) }
        return (one(solve(gram, q, method = cg, iters = 9)) + two(qr(gram) @ q) * trace(three) + diag(three)
          + eigenvectors(gram) @ square(transpose(eigenvectors(gram)) @ q)) |> merge_heads |> linear(12)
    """,
    "huber": """
        heads 2; value linear(x); delta = softplus(linear(x, 1))
        memory one : matrix { key k; objective huber(delta, form = norm); update gd(0.3) }
        memory two : mlp(depth = 2, expand = 1) { key k; objective huber(delta, form = mixed); chunk 4; update gd(0.1) }
        memory three : matrix { key k; objective huber(0.3 + sigmoid(linear(x, 6))); update gd(0.3) }
        return (one(q) + two(q) + three(q)) |> merge_heads |> linear(12)
    """,
    "flows in an objective": """
        heads 2; value linear(x); chunk 2
        memory one : matrix { key k; update gd(0.1); objective l2(twice(M(key)), twice(value)) }
        memory two : mlp(depth = 2, expand = 1) { key k; update momentum(0.05, 0.9)
          objective sum(square(normed(M(key)) - k)) }
        memory three : matrix { key k; chunk 1; update gd(0.1); objective l2(twice(M(key) + one(k)), value) }
        return (one(q) + two(q) + three(q)) |> merge_heads |> linear(12)
    """,
    "schedules": """
        heads 2; objective l2; value linear(x)
        memory one : matrix { key k; update gd(cosine(0.2, warmup = 3, total = 8, floor = 0.01)) }
        memory two : matrix { key k; update adam(wsd(0.02, 2, 3, 4)); every 2 tokens }
        memory three : mlp(depth = 1) { key k; chunk 4; update momentum(linear_decay(0.1, total = 9), 0.9)
          reset each(chunk) }
        return (one(q) + two(q) + three(q)) |> merge_heads |> linear(12)
    """,
    "ticks": """
        heads 2; objective l2; value linear(x); every 3 tokens
        memory one : matrix { key k; update momentum(0.1, mean(ticks(sigmoid(linear(x, 1))), axis = 0))
          retain 1 - 0.1 * max(ticks(sigmoid(linear(x, 1)))) }
        memory two : mlp(depth = 1) { key k; chunk 6; update gd(0.05 * sum(ticks(abs(k)), axis = 0)[0])
          project w * (1 + 0.01 * mean(ticks(one(k)))) }
        memory three : vector { every 1 token; update gd(0.1 * sum(ticks(sigmoid(linear(x, 1))))) }
        return (one(q) + two(q) + three) |> merge_heads |> linear(12)
    """,
    "resets in an optimiser": """
        heads 2; objective l2; value linear(x)
        memory one : mlp(depth = 2, expand = 1) { key k; chunk 4; update chunk_gd(0.2 / ((t - 1) % 4 + 1)) }
        memory two : matrix { key k; every 2 tokens; chunk 6; update chunk_gd(0.1) }
        memory three : matrix { key k; every 2 tokens; chunk 4; update chunk_gd(0.1); reset each(chunk) }
        return (one(q) + two(q) + three(q)) |> merge_heads |> linear(12)
    """,
    "debias under a gate": """
        heads 2; objective l2; value linear(x)
        memory one : matrix { key k; update gated(0.1, 0.5 + 0.4 * sigmoid(linear(x, 1))) }
        memory two : mlp(depth = 2, expand = 1) { key k; chunk 4; every 2 tokens; when mean(x) > 0
          update gated(0.1, {linear: sigmoid(linear(x, 1)), linear_2: 0.5}) }
        memory three : matrix { key k; update gated(0.1, sigmoid(linear(x, 6))); reset each(chunk); chunk 4 }
        return (one(q) + two(q) + three(q)) |> merge_heads |> linear(12)
    """,
    "slow": """
        heads 2; every 2 tokens; chunk 4; objective l2; update momentum(0.1, 0.9)
        memory one : ttt(slow = "layernorm.**") { key k; value linear(x); retain 0.95 }
        memory two : mlp(depth = 2, expand = 1, slow = "linear_2.*") { key k; value one(k); update adam(0.01) }
        return (one(q) + two(q)) |> merge_heads |> linear(12)
    """,
    "states": """
        heads 2; objective l2; value linear(x)
        memory one : matrix { key k; objective dot; update momentum(0.1, 0.9); retain 0.9 }
        memory two : matrix { key k; update gd(0.1); retain decay_first(0.5 + 0.5 * sigmoid(linear(x, 6))) }
        memory three : matrix { key k; update gd(0.1 * sigmoid(trace(one))); chunk 4; init learned; retain lq(0.9, 3) }
        memory four : mlp(depth = 2, expand = 1) { key k; update adam(0.02); every 2 tokens; chunk 4; read before }
        memory five : matrix { key k; objective 0.5 * sum(square(M(key) - value)) + 0.1 * trace(M @ M); update gd(0.1) }
        memory six : matrix { key k; objective dot; update gd(0.1); retain 0.5 + 0.5 * sigmoid(linear(x, 6)) }
        return (solve(one @ transpose(one) + eye(6), q) + two(diag(two)) + three @ q + four.linear @ q + diag(five)
          + six(diag(six))) |> merge_heads |> linear(12)
    """,
    "classes": """
        heads 2; every 2 tokens; chunk 4; update gd(0.1)
        memory one : mlp(depth = 1, out = 6) { key k; value t % 6; objective -log_prob(M(key), value) }
        memory two : normed { key k; value linear(x); objective kl(M(key), value) }
        memory three : matrix { key k; value linear(x); init learned; objective kl(stop(value), M(key)); every 1 token }
        return (one(q) + two(q) + three(q) + groupnorm(q, 3)) |> merge_heads |> linear(12)
    """,
}


def spec(fields: str) -> Spec:
    """A level with these fields, in a flow that repeats it; k and q are unit keys per head (or whole)."""
    per_head = "heads" in fields
    width = 6 if per_head else 4
    text = f"""nestflow 1
input x : float[T, 5]
output model(x)
level first(x) {{
  k = x |> linear({width}) |> l2norm
  q = x |> linear({width}) |> l2norm
  {fields.strip()}
}}
optimizer chunk_gd(lr) {{
  memory s : like(w) {{ value g; update gd(1); reset each(chunk) }}
  set w_chunk - lr * s
}}
optimizer gated(lr, beta) {{
  memory m : like(w) {{ value g; update gd(1 - beta); retain beta }}
  step -lr * debias(m)
}}
flow ttt(z) {{ return z + layernorm(linear(z, bias = true)) }}
flow twice(x) {{ return tanh(linear(silu(linear(x)))) }}
flow normed(x) {{ return x + groupnorm(linear(x), 2) }}
flow model(x) {{ x = x |> linear(12); repeat 2 {{ x = x + first(rmsnorm(x)) }}; return rmsnorm(x) |> linear(3) }}
"""
    return Spec(text, ("first",), False, 2, 11, (1, 4, 7), 5)


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    """One compilation a spec."""
    return {}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("holds", PROPERTIES, ids=lambda p: p.__name__)
def test_property(name: str, holds: Callable[[Case], None], cases: dict[str, Case]) -> None:
    if name not in cases:
        cases[name] = Case(spec(SPECS[name]))
    holds(cases[name])
