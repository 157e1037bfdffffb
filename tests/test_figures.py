"""The table of targets, and the suites that fill it: arithmetic and same numbers. No times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from benchmarks import figures, hope_peer, memories, peer_loops, run, shares, start, streams, titans_memory
from benchmarks.decode import stepper, streams_apart
from benchmarks.figures import Figure, over, row_of, worst
from benchmarks.models import one_layer, sees_all, some_tokens
from benchmarks.options import Options
from benchmarks.peak import measure
from benchmarks.plain_steps import BY_HAND

FEW = {"rounds": 1, "budget": 1e-9}


def ratio(x: float) -> dict[str, float]:
    return {"ratio": x}


def titans_row(case: str, chunk: int, length: int, floor: float, over_ours: float, peak: float) -> dict[str, Any]:
    return {
        "case": case, "chunk": chunk, "length": length, "peak_mb": peak,
        "forward": ratio(floor), "training": ratio(floor),
        "forward_over_ours": ratio(over_ours), "training_over_ours": ratio(over_ours),
    }  # fmt: skip


def by_name(found: list[Figure], start: str) -> Figure:
    (one,) = [f for f in found if f.what.startswith(start)]
    return one


def test_a_figure_is_reached_if_all_its_numbers_are_within_the_limit() -> None:
    assert Figure("", "≤", 2.0, (2.0, 1.0)).reached is True
    assert Figure("", "≤", 2.0, (2.001, 1.0)).reached is False
    assert Figure("", "≥", 2.0, (2.0, 1.99)).reached is False
    assert Figure("", "≥", 2.0, (3.0, None)).reached is None and Figure("", "≥", 2.0, ()).reached is None
    assert over(3.0, 2.0) == 1.5 and over(None, 2.0) is None and over(1.0, 0.0) is None
    assert worst({"a": 1.0, "b": 3.0, "c": None}) == ((3.0,), "b, the worst of 2") and worst({}) == ((None,), "")


def test_targets_of_titans_memory_from_kept_rows() -> None:
    rows = []
    for length, theirs in ((2048, 12.0), (8192, 30.0)):
        rows += [titans_row("nestflow", 16, length, 2.1, 1.0, 100.0)]
        rows += [titans_row("nestflow, compiled", 16, length, 1.7, 0.5, 90.0)]
        rows += [titans_row("titans-pytorch", 16, length, 60.0, theirs, 1000.0)]
    found = figures.figures({"titans_memory": {"rows": rows}})
    eager = by_name(found, "Titans' memory, chunk 16, forward, eager: × floor")
    assert eager.numbers == (2.1, 2.1) and eager.reached is True
    assert by_name(found, "Titans' memory, chunk 16, forward, compiled: × floor").reached is False
    assert by_name(found, "Titans' memory, chunk 64, forward, eager: × floor").reached is None
    compiled = by_name(found, "Titans' memory, chunk 16, forward, compiled: times as fast as titans-pytorch")
    assert compiled.numbers == (24.0, 60.0) and compiled.reached is True
    share = by_name(found, "Titans' memory, chunk 16, T = 8,192, peak memory, eager")
    assert share.numbers == (0.1,) and share.reached is True


def test_targets_of_decoding_and_of_length_are_of_the_right_rows() -> None:
    spot, growth, what = ratio(8.0), ratio(1.1), "titans_memory, chunk 16"
    decode_rows = [
        {"what": what, "case": "titans-pytorch", "start": spot, "later": ratio(2.0), "growth": growth},
        {"what": what, "case": "nestflow", "start": spot, "later": spot, "growth": growth},
        {"what": "transformer, one block", "case": "nestflow", "start": spot, "later": spot, "growth": ratio(9.0)},
    ]  # fmt: skip
    layer_rows = [
        {"spec": "transformer", "sees_all": True, "forward": {"growth": ratio(9.0)}, "training": {}},
        {"spec": "gla", "sees_all": False, "forward": {"growth": ratio(4.2)}, "training": {"growth": ratio(4.7)}},
        {"spec": "broken", "failed": "it does"},
    ]  # fmt: skip
    found = figures.figures({"decode": {"rows": decode_rows}, "layers": {"rows": layer_rows}})
    share = by_name(found, "Decoding, titans_memory")
    assert share.numbers == (0.125, 0.5) and share.reached is False
    assert by_name(found, "Decoding: a token later").numbers == (1.1,), "attention with a cache is not among them"
    assert by_name(found, "Any spec, forward: what").numbers == (4.2,)
    assert by_name(found, "Any spec, forward and backward: what").reached is False
    assert row_of({"layers": {"rows": layer_rows}}, "layers", spec="gla") is layer_rows[1]


def test_nothing_measured_is_a_table_of_dashes() -> None:
    text = figures.markdown({})
    assert "yes" not in text and "**no**" not in text and text.count("not measured |") == text.count("\n| ")
    busy = {"start": {"rows": [], "machine": {"load": 3.0}}}
    assert "Others used the machine when these suites began: start" in figures.markdown(busy)


def test_the_page_has_the_figures_that_the_kept_results_give() -> None:
    page = run.PAGE.read_text(encoding="utf-8")
    block = page.split("<!-- bench:figures -->\n")[1].split("\n<!-- /bench:figures -->")[0]
    assert block == run.targets(Options())


def test_results_are_resumed_where_settings_are_the_same(tmp_path: Path) -> None:
    options = Options(folder=tmp_path, resume=True)
    first = options.begin("some", {"lengths": (1, 2)})
    first["rows"] += [{"a": 1}, {"a": 2, "failed": "it did"}]
    options.keep("some", first)
    assert options.begin("some", {"lengths": (1, 2)})["rows"] == [{"a": 1}]
    assert options.begin("some", {"lengths": (1, 3)})["rows"] == []


def test_an_interrupted_suite_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[tuple[int, int]] = []

    def setting(what: Any, options: Options, chunk: int, length: int) -> list[dict[str, Any]]:
        if (chunk, length) == (64, 32) and len(ran) == 3:
            raise ValueError("interrupted")
        ran.append((chunk, length))
        return [{"chunk": chunk, "length": length, "case": "plain torch"}]

    monkeypatch.setattr(titans_memory, "run_setting", setting)
    what = titans_memory.What((16, 64), (16, 32), ("plain torch",))
    options = Options(folder=tmp_path, resume=True)
    with pytest.raises(ValueError, match="interrupted"):
        titans_memory.results(what, options, lambda found: options.keep("titans_memory", found))
    ran.append((0, 0))
    found = titans_memory.results(what, options)
    assert ran == [(16, 16), (16, 32), (64, 16), (0, 0), (64, 32)] and len(found["rows"]) == 4


@pytest.mark.parametrize("spec", sorted(BY_HAND))
def test_loops_by_hand_are_the_specs(spec: str) -> None:
    module = one_layer(spec, dim=16, heads=2).module.double()
    tokens, whole = some_tokens(20, 2), stepper(module, "tokens")
    step = BY_HAND[spec](dict(module.named_weights()))
    assert streams_apart(step, tokens, whole) < 1e-12
    step.taps = step.taps.flip(-1)
    assert streams_apart(step, tokens, whole) > 1e-6


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_rounds_inside_a_step_are_a_loop_written_by_hand(rule: str) -> None:
    """Adam with its epsilon after the bias is corrected, as TorchOpt has it."""

    def query(net: torch.nn.Module, b: dict[str, torch.Tensor]) -> torch.Tensor:
        losses, rate = [], peer_loops.RATES[rule]
        for x, y, qx, qy in zip(b["support.x"], b["support.label"], b["query.x"], b["query.label"]):
            p = dict(net.named_parameters())
            m = v = {n: torch.zeros_like(w) for n, w in p.items()}
            for t in range(1, peer_loops.ROUNDS + 1):
                loss = F.cross_entropy(functional_call(net, p, (x,)), y)
                g = dict(zip(p, torch.autograd.grad(loss, list(p.values()), create_graph=True)))
                m = {n: 0.9 * m[n] + 0.1 * g[n] for n in p}
                v = {n: 0.999 * v[n] + 0.001 * g[n] ** 2 for n in p}
                step = {n: m[n] / (1 - 0.9**t) / ((v[n] / (1 - 0.999**t)).sqrt() + 1e-8) for n in p}
                p = {n: w - rate * (step if rule == "adam" else g)[n] for n, w in p.items()}
            losses.append(F.cross_entropy(functional_call(net, p, (qx,)), qy))
        return torch.stack(losses).mean()

    assert peer_loops.difference(rule, "torchopt", query) < 1e-9
    assert peer_loops.difference(rule, "torchopt", lambda net, b: 1.001 * query(net, b)) > 1e-4


@pytest.mark.parametrize(("package", "make"), [(p, make) for p, _, make in peer_loops.PEERS])
def test_loops_of_peers_give_the_same_gradients(package: str, make: Any) -> None:
    pytest.importorskip(package)
    assert peer_loops.difference("sgd", package, make("sgd")) < peer_loops.LIMIT


def test_the_block_is_nested_learnings() -> None:
    pytest.importorskip("nested_learning")
    assert hope_peer.same_numbers(dim=16, ticks=19) < 1e-7
    bundle, block = hope_peer.ours(16, 4), hope_peer.theirs(16, 4)
    hope_peer.copy_weights(bundle, block)
    x, target = torch.randn(2, 1, 9, 16)
    hope_peer.their_training(block, x, target)()
    assert block.selfmod.w_q.weight.grad is not None and block.selfmod.m_k.w1.weight.grad is None


def test_our_training_step_of_the_block_moves_every_weight() -> None:
    bundle = hope_peer.ours(16, 4, 2)
    before = {n: w.detach().clone() for n, w in bundle.module.named_weights()}
    x, target = torch.randn(2, 1, 12, 16)
    for _ in range(4):  # one of the MLPs learns every fourth step
        hope_peer.our_training(bundle, x, target)()
    still = [n for n, w in bundle.module.named_weights() if torch.equal(before[n], w)]
    assert not still


def test_layers_alone_are_their_loops_and_have_closed_forms() -> None:
    for _, spec, name, chunk in memories.LAYERS:
        bundle = memories.layer(spec, name, chunk, "nestflow", "cpu")
        assert memories.loop_apart(bundle, ticks=2 * chunk + 3) < 1e-9


def test_what_a_stream_keeps_is_counted() -> None:
    assert [sees_all(one_layer(n, dim=16, heads=2).graph) for n in ("transformer", "swa", "titans")] == [
        True,
        False,
        False,
    ]
    module = one_layer("transformer", dim=16, heads=2).module
    early, late = (streams.fed(stepper(module, "tokens"), some_tokens(n), 8) for n in (8, 32))
    assert streams.kept(late) == 4 * streams.kept(early) == 4 * 8 * 2 * 16 * 4  # keys and values of 16 numbers


def test_tables_of_the_new_suites(tmp_path: Path) -> None:
    options = Options(quick=True, folder=tmp_path, **FEW)
    result = streams.results(["gla"], options)
    assert json.loads((tmp_path / "streams-cpu-quick.json").read_text())["rows"] == result["rows"]
    assert "| gla | " in run.text_of("streams", result) and streams.growth(result["rows"][0]) == 1.0
    spot = {"ratio": 2.0, "ratio_low": 1.5, "ratio_high": 2.5, "rounds": 3}
    row = {"what": "x", "spec": "hope_memory", "chunk": 16, "case": "nestflow", "forward": spot, "training": spot,
           "multiply_adds_per_token": 5, "peak_mb": None}  # fmt: skip
    assert "chunk 16 | nestflow | **2.0** (1.5–2.5) | **2.0** (1.5–2.5) | – | 5 |" in memories.markdown({"rows": [row]})
    seconds = {"seconds": 0.4, "low": 0.3, "high": 0.5}
    text = start.markdown({"rows": [{"spec": "hope", "check": seconds, "compile": seconds}]})
    assert "| hope | **0.40 s** (0.30–0.50) | **0.40 s** (0.30–0.50) |" in text


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="no_such_thing"):
        start.process("-c", "import no_such_thing")


def passes_that_need(megabytes: int) -> tuple[Any, Any]:
    return (lambda: None), lambda: torch.ones(megabytes * 2**18)


def test_peak_memory_is_of_the_second_pass() -> None:
    assert 60 < measure("tests.test_figures:passes_that_need", [64], "cpu") < 100


def test_shares_of_the_time_by_kind() -> None:
    """Each operation has one kind, and a pass of products alone is nearly all products."""
    kinds = ["aten::bmm", "aten::mul", "aten::sum", "aten::copy_", "autograd::engine::evaluate_function", "aten::view"]
    assert [shares.kind_of(k) for k in (*kinds, "graph_0_cpp_fused_add_1")] == [
        "products",
        "elementwise",
        "sums",
        "copies",
        "autograd",
        "views and calls",
        "compiled",
    ]
    assert sum(len(names) for names in shares.KINDS.values()) == len(frozenset().union(*shares.KINDS.values()))
    a = torch.randn(300, 300)
    found = shares.shares(lambda: a @ a @ a)
    assert abs(sum(found.values()) - 100) < 1e-6 and found["products"] > 50
    text = shares.markdown({"rows": [{"what": "A", "chunk": 4, "case": "plain", "mode": "forward", "shares": found}]})
    assert "| A, chunk 4 | plain, forward |" in text and f"{found['products']:.0f} %" in text
