"""Shared levels: one set of weights, a state for each call that learns; `m.read(x)`: what m says, nothing learned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import nestflow

T, D = 11, 4
HEAD = "nestflow 1\ninput x : float[T, 4]\noutput f(x)\n"
LEVELS = {
    "delta": "memory matrix; objective l2; update gd(0.5); retain sigmoid(linear(x, 1) + 2)",
    "titans": "chunk 4; memory mlp(depth = 2, expand = 1, residual = true); objective l2; update momentum(0.1, 0.5)",
    "lact": "every 3 tokens; memory matrix; objective l2; update adam(0.1)",
    "mixed": "every 2 tokens; chunk 4; memory matrix; objective dot; update gd(0.3); reset each(chunk); read before",
    "gla": "memory matrix; objective dot; update gd(1); retain sigmoid(linear(x, 2))",
}


def level(name: str) -> str:
    return (
        f"level m(x) {{ heads 2; {LEVELS[name]}; key x |> linear |> short_conv(2) |> l2norm; value x |> linear\n"
        "query x |> linear |> short_conv(3); return y |> rmsnorm |> merge_heads |> linear(4) }\n"
    )


def stirred(text: str) -> nestflow.Bundle:
    """With weights away from where they start."""
    b, source = nestflow.compile(text, dtype=torch.float64), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for w in b.module.weights.values():
            w.add_(0.2 * torch.randn(w.shape, generator=source, dtype=w.dtype))
    return b


def stream(rows: int = 2) -> Tensor:
    return torch.randn(rows, T, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def ran(run: object, b: nestflow.Bundle, x: Tensor) -> dict[str, Tensor]:
    """Output and the gradient of every weight."""
    y, weights = run(x=x), b.module.weights  # type: ignore[operator]
    probe = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    grads = torch.autograd.grad((y * probe).sum(), list(weights.values()), allow_unused=True, materialize_grads=True)
    return {"output": y, **dict(zip(weights, grads, strict=True))}


def check(b: nestflow.Bundle) -> dict[str, Tensor]:
    """Compiled is interpreted, any split is the whole, a row alone is the row in company."""
    x = stream()
    fast, slow = ran(b.module, b, x), ran(b.reference(), b, x)
    for name, got in fast.items():
        torch.testing.assert_close(got, slow[name], rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    live, state, parts, at = b.stream(batch=2), None, [], 0
    for n in (3, 1, 4, T - 8):
        parts.append(live.feed(x=x[:, at : at + n]))
        with torch.no_grad():
            y, state = b.reference().run(state, {"x": x[:, at : at + n]})
        torch.testing.assert_close(parts[-1], y)
        at += n
    torch.testing.assert_close(torch.cat(parts, 1), fast["output"])
    for path, kept in live.state.tensors.items():
        if not path.endswith((".key", ".value")):
            torch.testing.assert_close(kept, state[path], msg=lambda m, p=path: f"{p}: {m}")
    torch.testing.assert_close(b.module(x=x[1:]), fast["output"][1:])
    return fast


@pytest.mark.parametrize("name", LEVELS)
def test_two_calls_are_two_levels_of_equal_weights(name: str) -> None:
    twice = stirred(HEAD + "flow f(x) { shared s = m; a = s(x); return a + s(tanh(a)) }\n" + level(name))
    apart = nestflow.compile(
        HEAD + "flow f(x) { a = m(x); return a + m(tanh(a)) }\n" + level(name), dtype=torch.float64
    )
    one = {p.removeprefix("f.s."): w for p, w in twice.module.weights.items()}
    apart.module.load_state_dict({f"f.{m}.{p}": w for p, w in one.items() for m in ("m", "m_2")})
    fast, want = check(twice), ran(apart.module, apart, stream())
    torch.testing.assert_close(fast["output"], want["output"])
    for p in one:
        torch.testing.assert_close(fast[f"f.s.{p}"], want[f"f.m.{p}"] + want[f"f.m_2.{p}"])


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("order", ["before", "after", "alone"])
def test_reading(name: str, order: str) -> None:
    """Where what is learned depends on what was read, and where it does not."""
    flows = {
        "before": "h = s.read(x); return tanh(x + h) |> s",
        "after": "a = s(x); return a + s.read(tanh(a))",
        "alone": "a = s(x); return s.read(x) + s.read(2 * x)",
    }
    check(stirred(HEAD + f"flow f(x) {{ shared s = m; {flows[order]} }}\n" + level(name)))


def test_reading_by_hand() -> None:
    """W learns v + r, where r was read from the W that its chunk of three began with."""
    b = nestflow.compile(
        "nestflow 1\ninput k : float[T, 4]\ninput v : float[T, 4]\noutput f(k, v)\n"
        "flow f(k, v) { shared s = m; r = s.read(k, v); return s(k, v + r) }\n"
        "level m(k, v) { chunk 3; memory matrix; key k; value v; query previous(k); objective l2; update gd(0.4)\n"
        "retain 0.9; return 2 * y }\n",
        dtype=torch.float64,
    )
    k, v = stream(2), stream(2).flip(1)
    w, anchor, rows = torch.zeros(2, D, D, dtype=torch.float64), torch.zeros(2, D, D, dtype=torch.float64), []
    for t in range(T):
        if t % 3 == 0:
            anchor = w
        q = k[:, t - 1] if t else torch.zeros_like(k[:, 0])
        r = 2 * torch.einsum("boi,bi->bo", anchor, q)
        e = torch.einsum("boi,bi->bo", anchor, k[:, t]) - v[:, t] - r
        w = 0.9 * w - 0.4 * e[:, :, None] * k[:, t][:, None]
        rows.append(2 * torch.einsum("boi,bi->bo", w, q))
    torch.testing.assert_close(b.module(k=k, v=v), torch.stack(rows, 1))
    torch.testing.assert_close(b.reference()(k=k, v=v), torch.stack(rows, 1))


def test_reading_a_memory_of_the_same_level() -> None:
    """`store.read(q)` in `return` sees the chunk's first state, whatever `read` says."""
    text = HEAD + (
        "level f(x) { chunk 4; memory store : matrix { key x; value tanh(x); objective l2; update gd(0.3) }\n"
        "return store.read(x)%s }\n"
    )
    b, other = (nestflow.compile(text % more, dtype=torch.float64) for more in ("", " + 0 * store(x)"))
    start = nestflow.compile(
        (text % "").replace("chunk 4;", "chunk 4; read chunk_start;").replace(".read", ""), dtype=torch.float64
    )
    x = stream()
    for one in (b, other):
        torch.testing.assert_close(one.module(x=x), start.module(x=x))
        torch.testing.assert_close(one.reference()(x=x), start.module(x=x))


def test_shared_blocks_look_back_at_their_own_inputs() -> None:
    b = stirred(HEAD + "flow f(x) { shared c = short_conv(3); return c(c(x) + previous(x)) * pair(x) }\n"
                "flow pair(x) { shared h = inner; return h(x) + h(tanh(x)) }\n"
                "flow inner(x) { return short_conv(previous(x), 2) }\n")  # fmt: skip
    fast, x = check(b), stream()
    w, v = b.module.weights["f.c.weight"], b.module.weights["f.pair.h.short_conv.weight"]
    assert len(b.module.weights) == 2

    def late(y: Tensor, n: int) -> Tensor:
        return torch.nn.functional.pad(y, (0, 0, n, 0))[:, :T]

    def conv(y: Tensor, taps: Tensor) -> Tensor:
        return sum(taps[:, j] * late(y, j) for j in range(taps.shape[1]))  # type: ignore[return-value]

    g = sum(conv(late(y, 1), v) for y in (x, x.tanh()))
    torch.testing.assert_close(fast["output"], conv(conv(x, w) + late(x, 1), w) * g)


def test_shared_inside_shared_and_repeated() -> None:
    """Blocks in turns, each with a shared flow called twice, in which a level is read and called."""
    b = stirred(
        HEAD + "flow f(x) { repeat 2 { x = block(x) }; return x }\n"
        "flow block(x) { shared p = part; a = p(x); return x + p(tanh(a)) }\n"
        "flow part(x) { shared s = m; return s(x + s.read(x)) + 0.1 * x }\n" + level("titans")
    )
    check(b)
    paths = [s.path for s in b.graph.state if s.role == "memory" and s.path.endswith("linear.weight")]
    assert paths == [f"f.block.{i}.{p}.s.memory.linear.weight" for i in (0, 1) for p in ("p", "p@2")]
    assert all("@" not in p for p in b.module.weights)
    row = next(r for r in b.graph.levels if r.name.endswith("p.s"))
    assert row.count == 4 and row.parameters == sum(w.numel() for w in b.module.weights.values())


def test_a_bundle_with_shared_levels_is_saved(tmp_path: object) -> None:
    """And its standalone source gives the same numbers."""
    b = stirred(HEAD + "flow f(x) { shared s = m; return s(s.read(x) + x) }\n" + level("titans"))
    b.save(f"{tmp_path}/b")
    x = stream()
    torch.testing.assert_close(nestflow.load(f"{tmp_path}/b").module(x=x), b.module(x=x))
    from nestflow.emit.standalone import emit_standalone

    space: dict[str, object] = {"__name__": "alone"}
    exec(compile(emit_standalone(b.graph, b.plan), "alone.py", "exec"), space)
    model = space["Model"]().double()  # type: ignore[operator]
    model.load_state_dict(b.module.state_dict())
    torch.testing.assert_close(model(x=x), b.module(x=x))


@pytest.mark.parametrize(
    ("flow", "code"),
    [
        ("shared s = m; return s.read(x)", "NF423"),
        ("shared s = m; a = s(x); b = s(a); return s.read(b)", "NF423"),
        ("return m.read(x)", "NF421"),
        ("return x.read(x)", "NF421"),
        ("shared s = linear; return s.read(s(x))", "NF421"),
        ("shared s = att; return s.read(s(x))", "NF422"),
        ("shared s = where_; return s.read(s(x))", "NF422"),
        ("shared s = m; return s.read(concat(x, x)) |> linear(4) |> s", "NF317"),
        ("shared s = m; return s.read(x, 1) + s(x)", "NF213"),
    ],
)
def test_told(flow: str, code: str) -> None:
    more = (
        "level att(x) { memory cache; key x; value x; query x }\n"
        "level where_(x) { memory matrix; key x; value x; query x; objective l2; update gd(1)\n"
        "reset where(x[0] > 0) }\n"
    )
    with pytest.raises(nestflow.NestflowError) as e:
        nestflow.check(HEAD + f"flow f(x) {{ {flow} }}\n" + level("delta") + more)
    assert [d.code for d in e.value.diagnostics] == [code], str(e.value)


def test_what_is_published_in_pieces() -> None:
    """A flow that reads goes through its input piece by piece; what it emits is that of the whole input."""
    b = stirred(
        HEAD + "loss = mean(f(x)) + mean(emitted(size))\n"
        "level outer { every 1 step; memory weights(f); objective loss; update gd(0.1) }\n"
        "flow f(x) { shared s = m; emit size = norm(x); return s(x + s.read(x)) }\n"
        + level("titans").replace("return", "emit size = norm(y); return")
    )
    x = stream()
    objective = b.graph.step_levels[0].objective
    assert objective is not None
    want = b.reference().loss(objective, {"x": x})
    torch.testing.assert_close(b.loss({"x": x}), want)
