"""`init`: a constant, and the state of another memory, which a faster one takes over each time that learns (nested)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import nestflow

T, D = 11, 4
HEAD = "nestflow 1\ninput k : float[T, 4]\ninput v : float[T, 4]\noutput m(k, v)\n"


def inputs() -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(0)
    return {n: torch.randn(2, T, D, generator=source, dtype=torch.float64) for n in "kv"}


def gradient(a: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """∇ ½‖A k − v‖², row by row."""
    return (torch.einsum("boi,bi->bo", a, k) - v)[:, :, None] * k[:, None]


@pytest.mark.parametrize(
    ("init", "start"),
    [
        ("0.5", torch.full((D, D), 0.5)),
        ("ones", torch.ones(D, D)),
        ("eye", torch.eye(D)),
        ("-1 / 4", torch.full((D, D), -0.25)),
    ],
)
def test_constants(init: str, start: Tensor) -> None:
    """Where it starts, and where it starts anew."""
    b = nestflow.compile(
        HEAD + f"level m(k, v) {{ memory matrix; key k; value v; query k; objective l2; update gd(0.2); init {init}\n"
        "chunk 4; reset each(chunk) }\n",
        dtype=torch.float64,
    )
    assert not b.module.weights
    x, rows = inputs(), []
    a = anchor = start.double().expand(2, D, D)
    for t in range(T):
        if t % 4 == 0:
            a = anchor = start.double().expand(2, D, D)
        a = a - 0.2 * gradient(anchor, x["k"][:, t], x["v"][:, t])
        rows.append(torch.einsum("boi,bi->bo", a, x["k"][:, t]))
    for run in (b.module, b.reference()):
        torch.testing.assert_close(run(**x), torch.stack(rows, 1))


def test_nested_by_hand() -> None:
    """`fast` learns at each tick, and goes back to `slow` after each of its updates, one in three ticks."""
    b = nestflow.compile(
        HEAD + "level m(k, v) { key k; value v; objective l2\n"
        "memory slow : matrix { every 3 tokens; update gd(0.1); init learned(normal(0.5)) }\n"
        "memory fast : matrix { update gd(0.3); init slow; reset each(slow) }\n"
        "return fast(k) }\n",
        dtype=torch.float64,
    )
    x = inputs()
    (start,) = b.module.weights.values()
    slow = fast = start.detach().expand(2, D, D)
    pending, rows = torch.zeros(2, D, D, dtype=torch.float64), []
    for t in range(T):
        k, v = x["k"][:, t], x["v"][:, t]
        if t % 3 == 0:
            fast = slow
        pending = pending + gradient(slow, k, v)
        fast = fast - 0.3 * gradient(fast, k, v)
        if (t + 1) % 3 == 0:
            slow, pending = slow - 0.1 * pending, torch.zeros_like(pending)
        rows.append(torch.einsum("boi,bi->bo", fast, k))
    for run in (b.module, b.reference()):
        torch.testing.assert_close(run(**x), torch.stack(rows, 1))
    assert ("initialises", "m.slow", "m.fast") in {(e.kind, e.source, e.target) for e in b.graph.edges}


@pytest.mark.parametrize("kind", ["matrix", "mlp(depth = 2, expand = 1)"])
@pytest.mark.parametrize(
    ("slow", "fast"),
    [
        ("every 2 tokens; chunk 4; update gd(0.1)", "chunk 4; update momentum(0.2, 0.5); reset each(chunk)"),
        ("update gd(0.1); chunk 4; reset each(chunk)", "update gd(0.2); chunk 4; reset each(chunk)"),
        ("chunk 4; update adam(0.1)", "update momentum(0.2, 0.5); reset where(sum(k) > 0)"),
        ("every 4 tokens; update gd(0.1)", "every 2 tokens; update momentum(0.2, 0.5); reset each(slow); keep rule"),
    ],
)
def test_compiled_is_interpreted(kind: str, slow: str, fast: str) -> None:
    b = nestflow.compile(
        HEAD + "level m(k, v) { heads 2; a = k |> linear |> l2norm; key a; value v |> linear; objective l2\n"
        f"memory fast : {kind} {{ {fast}; init slow }}; memory slow : {kind} {{ {slow}; init learned }}\n"
        "return merge_heads(fast(a) + 0.5 * slow(a)) }\n",
        dtype=torch.float64,
    )
    x, weights = inputs(), list(b.module.weights.values())
    found = []
    for run in (b.module, b.reference()):
        y = run(**x)
        probe = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        found.append([y, *torch.autograd.grad((y * probe).sum(), weights, allow_unused=True, materialize_grads=True)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)
    stream = b.stream(batch=2)
    parts = [stream.feed(**{n: e[:, i:j] for n, e in x.items()}) for i, j in ((0, 3), (3, 4), (4, T))]
    torch.testing.assert_close(torch.cat(parts, 1), found[0][0])


@pytest.mark.parametrize(
    ("memories", "code"),
    [
        ("memory fast : matrix { update gd(0.1); init fast }", "NF206"),
        ("memory a : matrix { update gd(0.1); init fast }; memory fast : matrix { update gd(1); init a }", "NF206"),
        ("memory fast : matrix { update gd(0.1); init b }; memory b : mlp(expand = 2) { update gd(1) }", "NF319"),
        ("memory fast : matrix { update gd(0.1); init b }; memory b : cache { query k }", "NF319"),
        ("memory fast : matrix { value concat(v, v); update gd(0.1); init eye }", "NF319"),
    ],
)
def test_told(memories: str, code: str) -> None:
    more = "" if "cache" in memories else "objective l2"
    text = memories.replace("update", "objective l2; update") if "cache" in memories else memories
    with pytest.raises(nestflow.NestflowError) as e:
        nestflow.check(HEAD + f"level m(k, v) {{ key k; value v; {more}\n{text}\nreturn fast(k) }}\n")
    assert code in [d.code for d in e.value.diagnostics], str(e.value)


def test_chunks_begin_where_a_row_starts_anew() -> None:
    """`reset where(…)` beside `chunk 3`: each row counts its chunks from where it started anew."""
    b = nestflow.compile(
        HEAD + "level m(k, v) { memory matrix; key k; value v; query k; objective l2; chunk 3\n"
        "update momentum(0.2, 0.5); reset where(v[0] > 0.5) }\n",
        dtype=torch.float64,
    )
    x, rows, lengths = inputs(), [], set()
    for row in range(2):
        a = anchor = s = torch.zeros(1, D, D, dtype=torch.float64)
        since, ys = 0, []
        for t in range(T):
            k, v = x["k"][row : row + 1, t], x["v"][row : row + 1, t]
            if v[0, 0] > 0.5:
                lengths.add(since % 3)
                a, s, since = torch.zeros_like(a), torch.zeros_like(s), 0
            if since % 3 == 0:
                anchor = a
            s = 0.5 * s - 0.2 * gradient(anchor, k, v)
            a, since = a + s, since + 1
            ys.append(torch.einsum("boi,bi->bo", a, k)[0])
        rows.append(torch.stack(ys))
    assert len(lengths) > 1  # a reset within a chunk is among them
    for run in (b.module, b.reference()):
        torch.testing.assert_close(run(**x), torch.stack(rows))


@pytest.mark.parametrize("heads", ["", "heads 2;"])
@pytest.mark.parametrize("memory", ["matrix", "mlp(depth = 2, expand = 1)"])
@pytest.mark.parametrize(
    "fields",
    [
        "chunk 4; update momentum(0.1, 0.5); reset where(x[0] > 0)",
        "chunk 3; update dgd(0.2); reset where(x[0] > 0.7); when x[1] > 0",
        "chunk 3; update lion(0.01); read chunk_start; retain 0.9; reset where(x[0] > 0.7); keep rule",
        "chunk 2; update gd(0.1); reset where(sum(linear(x, 1)) > 0)",
        "every 2 tokens; chunk 4; update momentum(0.1, 0.5); reset where(x[0] > 0.7); when x[1] > 0",
        "every 2 tokens; update dgd(0.2); reset where(x[0] > 0.7); keep rule",
    ],
)
def test_resets_within_chunks_compiled(heads: str, memory: str, fields: str) -> None:
    b = nestflow.compile(
        f"nestflow 1\ninput x : float[T, 4]\noutput m(x)\nlevel m(x) {{ {heads} memory {memory}; {fields}\n"
        "key x |> linear |> l2norm; value x |> linear; query x |> linear; objective l2 }\n",
        dtype=torch.float64,
    )
    x = inputs()["k"]
    y, stream, state, parts = b.module(x=x), b.stream(batch=2), None, []
    torch.testing.assert_close(b.reference()(x=x), y, rtol=1e-8, atol=1e-10)
    for i, j in ((0, 2), (2, 3), (3, T)):
        parts.append(stream.feed(x=x[:, i:j]))
        with torch.no_grad():
            _, state = b.reference().run(state, {"x": x[:, i:j]})
    torch.testing.assert_close(torch.cat(parts, 1), y)
    for path, kept in stream.state.tensors.items():
        torch.testing.assert_close(kept, state[path], rtol=1e-8, atol=1e-10, msg=lambda m, p=path: f"{p}: {m}")


def test_sums_begin_where_a_row_starts_anew() -> None:
    """`reset where(…)` beside `every 3 tokens`: what waits is dropped, and the next update comes three ticks later."""
    b = nestflow.compile(
        HEAD + "level m(k, v) { memory matrix; key k; value v; query k; objective l2; every 3 tokens; update gd(0.2)\n"
        "reset where(v[0] > 0.5) }\n",
        dtype=torch.float64,
    )
    x, rows = inputs(), []
    for row in range(2):
        a = pending = torch.zeros(1, D, D, dtype=torch.float64)
        since, ys = 0, []
        for t in range(T):
            k, v = x["k"][row : row + 1, t], x["v"][row : row + 1, t]
            if v[0, 0] > 0.5:
                a, pending, since = torch.zeros_like(a), torch.zeros_like(a), 0
            pending, since = pending + gradient(a, k, v), since + 1
            if since % 3 == 0:
                a, pending = a - 0.2 * pending, torch.zeros_like(a)
            ys.append(torch.einsum("boi,bi->bo", a, k)[0])
        rows.append(torch.stack(ys))
    for run in (b.module, b.reference()):
        torch.testing.assert_close(run(**x), torch.stack(rows))
