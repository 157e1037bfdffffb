"""The harness of `benchmarks.run` computes what it says: recorded floors, yardsticks, tables, results. No times."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import nestflow
from benchmarks import decode, layers, peers, run, zoo
from benchmarks.models import depth_of, difference, lowering, one_layer, per_token
from benchmarks.options import Options
from benchmarks.pair import Pair, measured
from benchmarks.peak import available, needed
from benchmarks.peer_memories import both_modes, compared, fla, head_first, level, streams
from benchmarks.picture import picture
from benchmarks.plain_blocks import PlainAttention, PlainLinear
from benchmarks.products import Product, multiply_adds, recorded, replay
from benchmarks.same import apart
from benchmarks.table import write_block
from benchmarks.timing import Times, interleave

FEW = {"rounds": 1, "budget": 0.0}


def test_recorded_products_are_those_counted_by_hand() -> None:
    """One head of width 6 in chunks of 4 over 8 ticks: projections, and per chunk scores, recall and new state."""
    b = nestflow.compile(
        "nestflow 1\ninput x : float[T, 6]\noutput mem(x)\n"
        "level mem(x) { heads 1; memory matrix; key linear(x); value linear(x); query linear(x)\n"
        "objective dot; update gd(1); return merge_heads(y) |> linear(6) }\nexecution { block 4 }\n"
    )
    x = torch.randn(1, 8, 6)
    with torch.no_grad():
        found = recorded(lambda: b.module(x=x))
    want = {(8, 6, 6): 4} | dict.fromkeys(((4, 6, 4), (4, 4, 6), (4, 6, 6), (6, 4, 6)), 2)
    got = dict.fromkeys((p[1:] for p in found), 0)
    for p in found:  # those of both chunks may be one batch
        got[p[1:]] += p.count
    assert got == want
    assert multiply_adds(found) == 4 * 8 * 36 + 2 * (96 + 96 + 144 + 144)


def test_attention_counts_as_two_products_and_causal_as_half_of_the_pairs() -> None:
    q, k, v = torch.randn(3, 2, 3, 9, 4).unbind()
    full = recorded(lambda: F.scaled_dot_product_attention(q, k, v))
    causal = recorded(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    assert sum(p.multiply_adds for p in full) == 6 * 81 * (4 + 4)
    assert sum(p.multiply_adds for p in causal) == 6 * 45 * (4 + 4)  # 9 · 10 / 2 pairs


@pytest.mark.parametrize(
    ("what", "want"),
    [
        (lambda a, b: a @ b, (1, 3, 4, 5)),
        (lambda a, b: torch.addmm(torch.zeros(5), a, b), (1, 3, 4, 5)),
        (lambda a, b: a.expand(2, 3, 4) @ b.expand(2, 4, 5), (2, 3, 4, 5)),
        (lambda a, b: torch.baddbmm(torch.zeros(2, 3, 5), a.expand(2, 3, 4), b.expand(2, 4, 5)), (2, 3, 4, 5)),
        (lambda a, b: torch.zeros(2, 3, 5).baddbmm_(a.expand(2, 3, 4), b.expand(2, 4, 5)), (2, 3, 4, 5)),
        (lambda a, b: F.linear(a, b.mT, torch.zeros(5)), (1, 3, 4, 5)),
        (lambda a, b: torch.einsum("hij,hjk->hik", a.expand(2, 3, 4), b.expand(2, 4, 5)), (2, 3, 4, 5)),
        (lambda a, b: a @ b[:, 0], (1, 3, 4, 1)),
    ],
)
def test_every_way_to_write_a_product_is_seen(what: object, want: tuple[int, ...]) -> None:
    found = recorded(lambda: what(torch.randn(3, 4), torch.randn(4, 5)))  # type: ignore[operator]
    assert found == [Product(*want)]
    assert recorded(lambda: what(torch.randn(3, 4) * 2, torch.randn(4, 5)).sum()) == found  # type: ignore[operator]


def test_replay_runs_each_recorded_product_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Product] = []
    real = torch.bmm

    def count(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        seen.append(Product(a.shape[0], a.shape[1], a.shape[2], b.shape[2]))
        return real(a, b, out=out)

    products = [Product(1, 2, 3, 4), Product(5, 1, 2, 1), Product(1, 2, 3, 4)]
    again = replay(products, "cpu")
    monkeypatch.setattr(torch, "bmm", count)
    again()
    assert seen == products


@pytest.mark.parametrize(("spec", "kind"), [("transformer", PlainAttention), ("linear_attention", PlainLinear)])
@pytest.mark.parametrize("ticks", [1, 70, 130])
def test_yardsticks_compute_what_their_specs_compute(spec: str, kind: type[PlainAttention], ticks: int) -> None:
    module = one_layer(spec, dim=16, heads=2).module
    plain = kind(dict(module.named_weights()), 2)
    assert difference(plain, module, ticks) < 1e-13
    with torch.no_grad():
        plain.own["model_block_0_swiglu_up_weight"].mul_(1.01)
    assert difference(plain, module, ticks) > 1e-9


@pytest.mark.parametrize("spec", ["titans", "gated_deltanet", "gla"])
def test_the_per_token_loop_is_another_plan_of_the_same_meaning(spec: str) -> None:
    b = one_layer(spec, dim=16, heads=2)
    loop = per_token(b)
    assert difference(b.module, loop) < 1e-12
    assert set(lowering(b)) & {"chunk", "delta", "recurrence"}
    tokens = torch.zeros(1, 24, dtype=torch.long)
    with torch.no_grad():
        ours, theirs = (len(recorded(lambda m=m: m(tokens))) for m in (b.module, loop))
    assert theirs > ours  # products tick by tick


def test_models_whose_blocks_differ_get_every_mixer() -> None:
    sizes = {"dim": 16, "n_heads": 2, "vocab": 16}
    assert [depth_of(n, **sizes) for n in ("titans", "samba", "hybrid")] == [1, 2, 3]


def test_numbers_that_are_none_are_never_the_same() -> None:
    one, bad = torch.ones(2), torch.tensor([1.0, torch.nan])
    assert apart([one], [one]) == 0
    assert math.isnan(apart([one, bad], [one, one])) and math.isnan(apart([bad, one], [one, one]))
    with pytest.raises(ValueError, match="shapes"):
        apart([one], [torch.ones(1)])


def test_what_differs_is_not_timed() -> None:
    def never() -> None:
        raise AssertionError("it was timed")

    for error in (1.0, math.nan):
        row = measured(Pair("x", "y", "1", {"forward": never}, {"forward": never}, error), Options(**FEW))
        assert "differ" in row["failed"] and "modes" not in row


def test_ratios_of_two_cases_are_taken_round_by_round() -> None:
    s = Times([2.0, 9.0, 4.0], []).over(Times([1.0, 3.0], []))
    assert (s["ratio"], s["ratio_low"], s["ratio_high"], s["rounds"]) == (2.5, 2.0, 3.0, 2)


def test_the_floor_is_taken_before_those_that_are_held_against_it() -> None:
    order: list[str] = []
    runs = {n: (lambda n=n: order.append(n)) for n in ("ours", "other")}
    times = interleave(lambda: order.append("floor"), runs, 2, 1e9, "cpu", against=("ours",))
    assert order == ["floor", "floor", "floor", "ours", "other"] * 2
    assert len(times["ours"].floor) == 2 and not times["other"].floor


def test_what_a_call_needs_is_seen() -> None:
    def run() -> None:
        torch.ones(2**24)  # 64 MB

    if available() is None:
        pytest.skip("this system does not say")
    assert 48 * 2**20 < needed(run) < 256 * 2**20
    assert layers.fits(0) and not layers.fits(2**60)


def test_levels_alone_are_torchs_attention_and_the_delta_rule() -> None:
    x = streams(128, "cpu")

    def sdpa(x: dict[str, torch.Tensor]) -> torch.Tensor:
        return head_first(F.scaled_dot_product_attention, x["q"], x["k"], x["v"], is_causal=True)

    def delta(x: dict[str, torch.Tensor]) -> torch.Tensor:
        w, out = torch.zeros(1, 4, 64, 64), []
        for k, v, q, b in zip(*(x[n].unbind(1) for n in "kvqb")):
            w = w - b[..., None] * (torch.einsum("bhij,bhj->bhi", w, k) - v)[..., None] * k[..., None, :]
            out.append(torch.einsum("bhij,bhj->bhi", w, q))
        return torch.stack(out, 1)

    assert compared(level("softmax attention", "cpu"), sdpa, x, "kvq") < 1e-5
    assert compared(level("delta rule", "cpu"), delta, x, "kvqb") < 1e-5
    assert compared(level("delta rule", "cpu"), lambda x: 1.001 * delta(x), x, "kvqb") > 1e-4
    runs = both_modes(delta, {n: v[:, :4] for n, v in x.items()})
    runs["forward"](), runs["training"]()


def test_fla_that_is_absent_is_an_import_error() -> None:
    with pytest.raises((ImportError, AttributeError)):
        fla("no_such_room", "nothing")


def test_streams_of_the_decoding_suite_equal_the_whole() -> None:
    b = one_layer("titans", dim=16, heads=2)
    b.module.double()
    tokens = torch.randint(16, (1, 20))
    step = decode.stepper(b.module, "tokens")
    assert decode.streams_apart(step, tokens) < 1e-12

    def forgets(state: object, x: torch.Tensor) -> tuple[torch.Tensor, object]:
        return step(None, x)

    assert decode.streams_apart(forgets, tokens) > 1e-6
    cached = decode.Cached(16, 2, "cpu")
    assert decode.streams_apart(cached, torch.randn(1, 9, 16)) < 1e-5


def small_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, names: list[str]) -> dict[str, object]:
    monkeypatch.setattr(layers, "one_layer", lambda name: one_layer(name, dim=16, heads=2))
    monkeypatch.setattr(layers, "HEADS", 2)
    monkeypatch.setattr(layers, "LENGTHS", (32, 32))
    return layers.results(names, Options(quick=True, resume=True, folder=tmp_path, **FEW))


def test_layers_are_measured_kept_resumed_and_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(layers, "interleave", lambda floor, runs, *_, **__: {n: Times([2.0], [1.0]) for n in runs})
    first = small_rows(monkeypatch, tmp_path, ["gla"])
    (row,) = first["rows"]  # type: ignore[misc]
    assert row["lowering"] == ["recurrence"] and row["forward"]["floor"]["ratio"] == 2.0
    assert row["training"]["floor"]["ratio"] == pytest.approx(2 / 3) and row["forward"]["loop"]["ratio"] == 1.0
    kept = json.loads((tmp_path / "layers-cpu-quick.json").read_text())
    assert kept["rows"] == [row] and kept["machine"]["torch"] == torch.__version__
    real = layers.per_token
    monkeypatch.setattr(layers, "per_token", lambda b: one_layer("deltanet", dim=16, heads=2).module)
    both = small_rows(monkeypatch, tmp_path, ["gla", "titans"])
    assert both["rows"][0] == row, "it is not measured again"  # type: ignore[index]
    assert "differ" in both["rows"][1]["failed"]  # type: ignore[index]
    text = run.text_of("layers", both)
    assert "| recurrence | **2.0** (1 run) | **0.7** (1 run) |" in text and "not timed: compiled and" in text
    monkeypatch.setattr(layers, "per_token", real)
    monkeypatch.setattr(layers, "needed", lambda run: 1)
    monkeypatch.setattr(layers, "available", lambda: 1)
    tight = small_rows(monkeypatch, tmp_path / "tight", ["swa"])["rows"][0]  # type: ignore[index]
    assert "floor" not in tight["training"] and any(x.startswith("ours, training") for x in tight["left_out"])
    assert "Left out, for want of memory: swa" in layers.markdown({"rows": [tight]})
    drawn = []
    for ratio in (2.0, 3.0, 2.0):
        both["rows"][0]["forward"]["floor"]["ratio"] = ratio  # type: ignore[index]
        picture(both, tmp_path / "speed.svg")
        drawn.append((tmp_path / "speed.svg").read_text())
    assert drawn[0] == drawn[2] != drawn[1], "the same picture each time, of these numbers"


def test_tables_of_peers_and_decoding() -> None:
    pair = Pair("adamw", "torch.optim.AdamW, fused", "2", {"step": int}, {"step": int}, 0.0)
    rows = [measured(pair, Options(rounds=2, budget=1.0))]
    text = peers.markdown({"rows": rows, "absent": ["fla-core"]})
    assert "| adamw | torch.optim.AdamW, fused | **" in text and "left out: fla-core" in text
    spot = {"ratio": 2.0, "ms": 1.5}
    rows = [{"what": "titans", "case": "loop", "start": spot, "later": spot, "growth": {"ratio": 1.0}}]
    text = decode.markdown({"rows": rows, "settings": {"after": 4096}, "peers": {"titans-pytorch": None}})
    assert "| titans | loop | **2** / **2** | 1.50 / 1.50 | 1.00 |" in text and "Not installed: titans-pytorch" in text


def test_blocks_of_pages_are_replaced_by_name(tmp_path: Path) -> None:
    page = tmp_path / "speed.md"
    page.write_text("a\n<!-- bench:one -->\nold\n<!-- /bench:one -->\nb\n<!-- bench:two -->\n<!-- /bench:two -->\n")
    write_block(page, "one", "new")
    assert page.read_text().startswith("a\n<!-- bench:one -->\nnew\n<!-- /bench:one -->\nb\n<!-- bench:two -->")
    with pytest.raises(ValueError, match="bench:three"):
        write_block(page, "three", "x")


def test_the_pages_have_a_block_for_every_suite() -> None:
    page = run.PAGE.read_text(encoding="utf-8")
    assert all(f"<!-- bench:{s} -->" in page for s in run.suites([]))
    assert "<!-- bench:titans_memory -->" in run.README.read_text(encoding="utf-8")


def test_quick_runs_are_not_published(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--rounds", "0"], ["--threads", "0"], ["--budget", "nan"], ["--budget", "-1"], ["--device", "foo"]):
        with pytest.raises(SystemExit):
            run.main(wrong)
    with pytest.raises(SystemExit):
        run.main(["--quick", "--write"])
    assert "not for publication" in capsys.readouterr().err


def test_the_zoo_keeps_its_rows_and_replaces_those_measured_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[str] = []

    def measure(name: str, *_: object) -> dict[str, object]:
        calls.append(name)
        return {"name": name, "bpb": float(len(calls)), "without": None, "long": None, "tokens_per_cpu_s": 1.0,
                "seconds": 1.0}  # fmt: skip

    monkeypatch.setattr(zoo, "measure", measure)
    out = tmp_path / "zoo.json"
    zoo.results(zoo.QUICK, ["gla", "titans"], "quick", out)
    zoo.results(zoo.QUICK, ["gla"], "quick", out)
    zoo.results(zoo.QUICK, ["gla", "titans"], "quick", out, resume=True)
    assert calls == ["gla", "titans", "gla"]
    assert {r["name"]: r["bpb"] for r in json.loads(out.read_text())["rows"]} == {"titans": 2.0, "gla": 3.0}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"rows": 3}', "null"])
def test_a_kept_result_that_is_damaged_is_measured_anew(text: str, tmp_path: Path) -> None:
    options = Options(resume=True, folder=tmp_path)
    options.file("start").write_text(text, encoding="utf-8")
    assert options.begin("start", {})["rows"] == []
