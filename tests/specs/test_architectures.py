"""What must hold for every shipped architecture: small, in float64, beside the interpreter that defines the meaning."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import nestflow

SMALL: dict[str, Any] = {"dim": 16, "n_heads": 2, "vocab": 32, "depth": 1}
SPECS: dict[str, dict[str, Any]] = {
    "linear_attention": SMALL,
    "transformer": SMALL,
    "titans": SMALL | {"chunk": 4},
    "titans_mag": SMALL | {"chunk": 4, "window": 3, "persistent": 2},
    "titans_mac": SMALL | {"chunk": 4, "persistent": 3},
    "titans_mal": SMALL | {"chunk": 4, "window": 3},
    "hybrid": SMALL | {"chunk": 4, "window": 3, "depth": 3},
    "hope": SMALL | {"chunk": 4},
    "hope_attention": SMALL,
    "cms_sequential": SMALL | {"fast": 2, "slow": 4, "rate": 0.02},
    "cms_nested": SMALL | {"fast": 2, "slow": 4, "rate": 0.02},
    "cms_independent": SMALL | {"fast": 2, "slow": 4, "rate": 0.02},
    "atlas": SMALL | {"chunk": 4, "span": 3, "expand": 2},
    "comba": SMALL,
    "deltanet": SMALL,
    "deltaproduct": SMALL,
    "dla": SMALL | {"chunk": 4, "expand": 2},
    "gated_deltanet": SMALL,
    "gla": SMALL,
    "gqa": SMALL | {"kv_heads": 1},
    "hgrn2": SMALL,
    "kda": SMALL,
    "lact": SMALL | {"chunk": 4, "window": 4},
    "longhorn": SMALL,
    "mamba2": SMALL | {"state": 4},
    "memora": SMALL | {"chunk": 4, "expand": 2},
    "mesanet": SMALL | {"iters": 8},
    "normalized_attention": SMALL,
    "moneta": SMALL | {"chunk": 4, "expand": 2},
    "omega": SMALL | {"chunk": 4, "span": 3, "expand": 2},
    "retnet": SMALL,
    "rwkv7": SMALL,
    "samba": SMALL | {"depth": 2, "state": 4, "window": 3},
    "swa": SMALL | {"depth": 5, "window": 3},  # five windows reach back over all tokens of the tests
    "tnt": SMALL | {"chunk": 2, "span": 4},
    "ttt_linear": SMALL | {"chunk": 4},
    "ttt_mlp": SMALL | {"chunk": 4},
    "yaad": SMALL | {"chunk": 4, "expand": 2},
}
every_spec = pytest.mark.parametrize("name", SPECS)
TOKENS = 11


def fresh(name: str, **more: Any) -> Any:
    return nestflow.compile(name, dtype=torch.float64, **(SPECS[name] | more))


@cache
def shared(name: str) -> Any:
    """One bundle of a spec for the tests that do not train it."""
    return fresh(name)


def tokens(rows: int = 2, length: int = TOKENS, seed: int = 0) -> Tensor:
    return torch.randint(0, 32, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_every_shipped_architecture_is_tested() -> None:
    from nestflow.language.shipped import shipped_names

    assert {n.rsplit(".", 1)[-1] for n in shipped_names() if n.startswith("architectures.")} == {
        *SPECS,
        "cms_stack",  # runs on a network of the caller: tests/networks
    }


@every_spec
def test_checks_with_its_own_params(name: str) -> None:
    graph = nestflow.check(name)
    assert graph.doc and all(p.doc for p in graph.params)
    assert not [d for d in graph.notes if d.severity != "note"]
    assert any(level.clock == "step" for level in graph.levels)


@every_spec
def test_compiled_is_interpreted(name: str) -> None:
    """Output and the gradient of every weight, to 1e-9."""
    b = shared(name)
    x = tokens()
    weights = dict(b.module.named_parameters())
    probe = torch.randn(2, TOKENS, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for run in (b.module, b.reference()):
        out = run(tokens=x)
        gradients = torch.autograd.grad((out * probe).sum(), list(weights.values()), allow_unused=True)
        found.append((out, gradients))
    (fast, fast_g), (slow, slow_g) = found
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    for path, a, c in zip(weights, fast_g, slow_g, strict=True):
        zero = torch.zeros_like(weights[path])
        a, c = (zero if g is None else g for g in (a, c))
        torch.testing.assert_close(a, c, rtol=1e-7, atol=1e-9, msg=lambda m, path=path: f"{path}: {m}")


@every_spec
@pytest.mark.parametrize("split", [(1,) * TOKENS, (3, 8), (4, 4, 3), (5, 1, 5), (10, 1)], ids=str)
def test_stream_is_full(name: str, split: tuple[int, ...]) -> None:
    b = shared(name)
    x = tokens()
    with torch.no_grad():
        full = b.module(tokens=x)
    stream = b.stream(batch=2)
    parts, at = [], 0
    for n in split:
        parts.append(stream.feed(tokens=x[:, at : at + n]))
        at += n
    torch.testing.assert_close(torch.cat(parts, 1), full, rtol=1e-9, atol=1e-10)


@every_spec
def test_no_output_sees_a_later_token(name: str) -> None:
    b = shared(name)
    x = tokens()
    with torch.no_grad():
        before = b.module(tokens=x)
        for t in (3, 4, 7, TOKENS - 1):
            other = x.clone()
            other[:, t:] = (other[:, t:] + 5) % 32
            after = b.module(tokens=other)
            torch.testing.assert_close(after[:, :t], before[:, :t], rtol=0, atol=1e-12)
            assert not torch.allclose(after[:, t], before[:, t])


@every_spec
def test_a_row_alone_is_a_row_in_company(name: str) -> None:
    b = shared(name)
    x = tokens(rows=3)
    with torch.no_grad():
        together = b.module(tokens=x)
        alone = torch.cat([b.module(tokens=x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-11)


@every_spec
def test_the_context_matters(name: str) -> None:
    """The output at a token depends on tokens before it, far ones included (a window of 3 alone could not)."""
    b = shared(name)
    x = tokens(rows=1)
    other = x.clone()
    other[:, 0] = (other[:, 0] + 1) % 32
    with torch.no_grad():
        assert not torch.allclose(b.module(tokens=x)[:, -1], b.module(tokens=other)[:, -1], rtol=0, atol=1e-12)


@every_spec
def test_trains(name: str) -> None:
    b = fresh(name, warmup=1)
    b.set_total_steps(16)
    x = tokens(rows=4, length=24)
    before = b.loss({"tokens": x}).item()
    assert abs(before - math.log(32)) < 1.5
    for _ in range(16):
        assert math.isfinite(b.step({"tokens": x})["loss"])
    assert b.loss({"tokens": x}).item() < before - 0.1
    assert all(torch.isfinite(w).all() for w in b.module.parameters())


@pytest.mark.parametrize("name", ["hope", "hope_attention"])
def test_the_slow_memories_learn_at_their_steps(name: str) -> None:
    """MLP_p changes at steps p, 2p, … and at no other."""
    b = fresh(name)
    b.set_total_steps(16)
    x = tokens()
    weights = dict(b.module.named_parameters())
    paths = {p: [w for w in weights if f".mlp_{p}." in w] for p in (1, 4, 16)}
    assert all(paths.values())
    for step in range(1, 17):
        kept = {path: w.detach().clone() for path, w in weights.items()}
        b.step({"tokens": x})
        for p, mine in paths.items():
            changed = any(not torch.equal(kept[path], weights[path]) for path in mine)
            assert changed == (step % p == 0), f"mlp_{p} at step {step}"


NO_RATE = {"transformer", "hope_attention", "swa", "gqa", "tnt"}
PLAIN = {"cms_sequential", "cms_independent"}  # at rate 0 they keep nothing at all: tests/zoo/test_cms.py


@pytest.mark.parametrize("name", sorted(set(SPECS) - NO_RATE - PLAIN))
def test_rate_zero_freezes_the_memory(name: str) -> None:
    """With rate 0 the weights are the same ones, and the memory at the last token is the one at the first."""
    b = fresh(name, rate=0)
    b.module.load_state_dict(shared(name).module.state_dict())
    x = tokens(rows=1, length=40)
    stream = b.stream(batch=1)
    stream.feed(tokens=x[:, :1])
    first = memories(b, stream)
    stream.feed(tokens=x[:, 1:])
    assert first
    for path, value in memories(b, stream).items():
        torch.testing.assert_close(value, first[path], rtol=0, atol=1e-12)


def memories(b: Any, stream: Any) -> dict[str, Tensor]:
    """The state tensors of a stream that are memories (not look-back tails, not caches)."""
    slots = {s.path for s in b.graph.state if s.role == "memory"}
    return {path: value.clone() for path, value in stream.state.tensors.items() if path in slots}


@pytest.mark.parametrize(
    "reading",
    [
        {"own_query": True},
        {"store_chunk": 2},
        {"store_chunk": 8},
        {"read_start": True},
        {"read_before": True},
        {"exact": False, "rate": 0.2},
        {"first_only": True},
        {"plain": True},
    ],
    ids=str,
)
def test_readings_of_hope(reading: dict[str, Any]) -> None:
    """Every reading that is a param is another model, computed in closed form and as the interpreter has it."""
    b = fresh("hope", **reading)
    assert {m.pattern for level in b.plan.levels.values() for m in level.memories} == {"chunk"}
    x = tokens()
    with torch.no_grad():
        y = b.module(tokens=x)
        torch.testing.assert_close(y, b.reference()(tokens=x), rtol=1e-9, atol=1e-9)
        known = {p: w for p, w in shared("hope").module.state_dict().items() if p in b.module.weights}
        b.module.load_state_dict(known, strict=False)
        assert not torch.allclose(b.module(tokens=x), shared("hope").module(tokens=x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in SPECS if not n.startswith("cms_")])
def test_a_token_that_is_not_finite_leaves_the_ones_before_it_alone(name: str) -> None:
    """The row of the table for token 5 is NaN (cms learns by a loss over all classes, which is NaN at once)."""
    bundle = shared(name)
    (table,) = (w for p, w in bundle.module.weights.items() if p.endswith(".emb.weight"))
    x = tokens()
    x[x == 5] = 6
    clean = bundle.module(x)
    bad, others = x.clone(), [c for c in range(32) if c != 5]  # a tied table: the scores of class 5 are NaN everywhere
    bad[0, 5] = 5
    kept = table.detach().clone()
    try:
        with torch.no_grad():
            table[5] = torch.nan
            got, want = bundle.module(bad)[..., others], bundle.reference()(bad)[..., others]
    finally:
        with torch.no_grad():
            table.copy_(kept)
    assert torch.equal(got[0, :5], clean[0, :5][..., others])
    assert torch.equal(got[1], clean[1][..., others])
    assert torch.equal(got.isfinite(), want.isfinite())
