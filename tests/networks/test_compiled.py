"""A network of the caller inside a compiled spec: called by its inputs' names, its parameters among the weights."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import nestflow
from nestflow.diagnostics.core import NestflowError
from tests.networks.nets import HEAD, MODEL, VOCAB, Causal, Scored, assert_same_state, causal, tokens


def code(act: object) -> str:
    with pytest.raises(NestflowError) as e:
        act()  # type: ignore[operator]
    return e.value.diagnostics[0].code


@pytest.mark.parametrize("typed", [True, False])
def test_compiled_is_interpreted_is_torch(typed: bool) -> None:
    net = causal()
    b = nestflow.compile(MODEL if typed else MODEL.replace(f") : float[T, {VOCAB}]", ")"), net=net)
    assert b.module.net is net and b.module.dtype == torch.float64
    assert {p for p in b.module.weights if p.startswith("net.")} == {f"net.{n}" for n, _ in net.named_parameters()}
    x = tokens()
    y, ref = b.module(tokens=x), b.reference()(tokens=x)
    h = net(x, scale=2.0)
    torch.testing.assert_close(y, h + h @ b.module.weights["model.linear.weight"].T)
    torch.testing.assert_close(y, ref)
    learns = [p for p in b.module.weights.values() if p.requires_grad]
    for a, r in zip(
        torch.autograd.grad(y.square().sum(), learns), torch.autograd.grad(ref.square().sum(), learns), strict=True
    ):
        torch.testing.assert_close(a, r)
    objective = b.graph.step_levels[0].objective
    assert objective is not None
    torch.testing.assert_close(b.loss({"tokens": x}), b.reference().loss(objective, {"tokens": x}))


def test_any_split_of_a_stream_is_the_whole_and_rows_begin_anew() -> None:
    b, x = nestflow.compile(MODEL, net=causal()), tokens(2, 7)
    whole = b.module(tokens=x)
    s = b.stream(2)
    parts = [s.feed(tokens=x[:, i:j]) for i, j in ((0, 2), (2, 3), (3, 7))]
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    s.reset(1)
    mixed = s.feed(tokens=x[:, :2])
    torch.testing.assert_close(mixed[1], whole[1, :2])
    longer = b.module(tokens=torch.cat([x[:1], x[:1, :2]], 1))
    torch.testing.assert_close(mixed[0], longer[0, 7:])
    torch.testing.assert_close(b.module(tokens=x[:1]), whole[:1])
    ref = b.reference()
    first, state = ref.run(None, {"tokens": x[:, :3]})
    second, _ = ref.run(state, {"tokens": x[:, 3:]})
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    starts = torch.zeros(2, 7, dtype=torch.bool)
    starts[0, 4] = True
    again, _ = ref.run(None, {"tokens": x}, starts)
    torch.testing.assert_close(again[0, 4:], b.module(tokens=x[:1, 4:])[0])
    torch.testing.assert_close(again[1], whole[1])


def test_training_is_a_plain_loop_of_torch() -> None:
    net, other, x = causal(), causal(), tokens(3, 6)
    b = nestflow.compile(MODEL, net=net)
    linear = b.module.weights["model.linear.weight"].detach().clone().requires_grad_()
    fast = torch.optim.Adam([*other.layers[0].parameters(), linear], 1e-2)
    slow = torch.optim.Adam(other.layers[1].parameters(), 1e-2)
    kept = [torch.zeros_like(p) for p in other.layers[1].parameters()]
    for i in range(4):
        b.step({"tokens": x})
        h = other(x, scale=2.0)
        scores = h + h @ linear.T
        loss = nn.functional.cross_entropy(scores[:, :-1].flatten(0, 1), x[:, 1:].flatten())
        fast.zero_grad()
        slow.zero_grad()
        loss.backward()
        fast.step()
        for k, p in zip(kept, other.layers[1].parameters(), strict=True):
            assert p.grad is not None
            k += p.grad
        if i % 2:
            for k, p in zip(kept, other.layers[1].parameters(), strict=True):
                p.grad = k / 2
            slow.step()
            kept = [torch.zeros_like(p) for p in other.layers[1].parameters()]
    for (n, p), q in zip(net.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=n)
    torch.testing.assert_close(b.module.weights["model.linear.weight"], linear)


def test_copies_pickles_and_files_go_on_alike(tmp_path: Path) -> None:
    b, batch = nestflow.compile(MODEL, net=causal()), {"tokens": tokens()}
    for _ in range(3):
        b.step(batch)
    others = [copy.deepcopy(b), pickle.loads(pickle.dumps(b))]
    b.save(tmp_path / "b")
    fresh = Causal().double()
    others.append(nestflow.load(tmp_path / "b", net=fresh))
    assert others[-1].module.net is fresh and float(fresh.passes) == 3
    wanted = [b.step(batch)["loss"] for _ in range(3)]
    for o in others:
        assert o.module.net is not b.module.net
        assert o.module.net.head.weight is o.module.net.emb.weight
        assert [o.step(batch)["loss"] for _ in range(3)] == wanted
        assert_same_state(o.module, b.module)
    module = copy.deepcopy(b.module)
    assert module.net is not b.module.net and torch.equal(module(**batch), b.module(**batch))


def test_loading_with_another_network_is_told(tmp_path: Path) -> None:
    nestflow.compile(MODEL, net=causal()).save(tmp_path / "b")
    load = nestflow.load
    assert code(lambda: load(tmp_path / "b")) == "NF560"
    assert code(lambda: load(tmp_path / "b", net=3)) == "NF561"
    assert code(lambda: load(tmp_path / "b", nett=causal())) == "NF440"
    assert code(lambda: load(tmp_path / "b", net=causal().float())) == "NF561"
    wide = causal()
    wide.unused = nn.Linear(3, 3).double()
    assert code(lambda: load(tmp_path / "b", net=wide)) == "NF514"
    other = causal()
    other.register_buffer("more", torch.zeros(2))
    assert code(lambda: load(tmp_path / "b", net=other)) == "NF514"


def test_a_network_is_used_as_it_is() -> None:
    assert code(lambda: nestflow.compile(MODEL, net=causal(), dtype="float32")) == "NF561"
    b = nestflow.compile(MODEL, net=causal().float())
    assert b.module.weights["model.linear.weight"].dtype == torch.float32
    b.step({"tokens": tokens()})
    b.to(torch.float64)  # afterwards all of it moves together
    assert b.module.net.emb.weight.dtype == torch.float64
    b.step({"tokens": tokens()})
    torch.testing.assert_close(b.module(tokens=tokens()), b.reference()(tokens=tokens()))


def test_parts_of_a_result() -> None:
    spec = HEAD + "extern net(input_ids, labels)\noutput net(tokens, tokens).logits\nloss = net(tokens, tokens).loss\n"
    spec += "level outer { memory weights(net); objective loss; update adam(1e-2) }\n"
    torch.manual_seed(0)
    b, x = nestflow.compile(spec, net=Scored().double()), tokens()
    made = b.module.net(x, x)
    torch.testing.assert_close(b.module(tokens=x), made.logits)
    torch.testing.assert_close(b.loss({"tokens": x}), made.loss)
    torch.testing.assert_close(b.reference()(tokens=x), made.logits)
    assert b.graph.step_levels[0].objective is not None
    torch.testing.assert_close(b.reference().loss(b.graph.step_levels[0].objective, {"tokens": x}), made.loss)
    before = b.step({"tokens": x})["loss"]
    assert b.step({"tokens": x})["loss"] < before
    assert b.source.count("network(c, 'net'") == 2  # once for each entry point
    whole = spec.replace(".logits", "")
    assert code(lambda: nestflow.compile(whole, net=Scored())) == "NF445"


def test_a_network_without_a_token_axis_and_a_wrong_type() -> None:
    spec = "nestflow 1\ninput x : float[4]\nextern net(input) : float[3]\noutput net(x) * 2\n"
    net, x = nn.Linear(4, 3), torch.randn(5, 4)
    b = nestflow.compile(spec, net=net)
    torch.testing.assert_close(b.module(x=x), net(x) * 2)
    torch.testing.assert_close(b.reference()(x=x), net(x) * 2)
    wrong = nestflow.compile(spec.replace("float[3]", "float[2]"), net=net)
    assert code(lambda: wrong.module(x=x)) == "NF562"
    assert code(lambda: nestflow.compile(spec.replace("(input)", "(x)"), net=net)) == "NF442"
    assert code(lambda: nestflow.compile(spec.replace("(input) : float[3]", "(input)"), net=nn.Linear(5, 3))) == "NF446"
    assert code(lambda: b.standalone()) == "NF565"


def test_the_callers_gradients_beside_a_compiled_network() -> None:
    """Levels without an objective learn from what the caller's backward left, in a bundle too."""
    spec = HEAD + "extern net(input_ids)\noutput net(tokens)\nlevel all { memory weights(net); update gd(0.1) }\n"
    net, x = causal(), tokens()
    b = nestflow.compile(spec, net=net)
    assert code(lambda: b.step({"tokens": x})) == "NF509" and code(lambda: b.loss({"tokens": x})) == "NF509"
    kept = net.emb.weight.detach().clone()
    b.module(tokens=x).square().mean().backward()
    assert net.emb.weight.grad is not None
    wanted = kept - 0.1 * net.emb.weight.grad
    b.optimizer.step()
    torch.testing.assert_close(net.emb.weight, wanted)


def test_checked_without_the_network() -> None:
    for spec in (MODEL, MODEL.replace(f") : float[T, {VOCAB}]", ")")):
        assert [n.code for n in nestflow.check(spec).notes] == ["NF460"]
        assert nestflow.check(spec, net=causal()).notes == ()
        assert code(lambda s=spec: nestflow.compile(s)) == "NF560"
    assert code(lambda: nestflow.check(MODEL.replace("layers.0.**", "layers.[0-1].**"))) == "NF238"
    assert code(lambda: nestflow.check(MODEL.replace("adam", "adma"))) == "NF201"


def test_a_run_with_a_network_resumes_bit_for_bit(tmp_path: Path) -> None:
    from nestflow.train import train

    spec = HEAD.replace(f"[0, {VOCAB})", "[0, 256)").replace("\ninput", "\nparam vocab = 256\ninput")
    spec += (
        "extern net(input_ids) : float[T, 256]\noutput net(tokens)\nloss = cross_entropy(net(tokens), next(tokens))\n"
    )
    spec += 'level a { every 2 steps; memory weights(net, "0.**"); objective loss; update adam(1e-2) }\n'
    spec += "level b { memory rest(net); objective loss; update adam(1e-2) }\n"
    spec = spec.replace("input_ids", "input")

    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(256, 8), nn.Linear(8, 256))

    settings: dict[str, object] = {"batch": 2, "length": 16, "eval_every": 0, "checkpoint_every": 3, "show": False}
    text = b"so many words, so few of them meant. " * 40
    whole = train(nestflow.compile(spec, net=net()), text, 6, out=tmp_path / "whole", **settings)  # type: ignore[arg-type]
    train(nestflow.compile(spec, net=net()), text, 3, out=tmp_path / "cut", **settings)  # type: ignore[arg-type]
    assert code(lambda: train(None, text, 6, resume=tmp_path / "cut", show=False)) == "NF560"
    again = train(None, text, 6, resume=tmp_path / "cut", show=False, networks={"net": net()})
    assert again.losses == whole.losses
    assert_same_state(again.bundle.module, whole.bundle.module)


def test_a_teacher_that_comes_in_eval_mode_and_is_frozen_stays_as_it_is() -> None:
    spec = """nestflow 1
input x : float[T, 4]
extern teacher(input) : float[T, 3]
extern student(input)
output student(x)
loss = mean(square(student(x) - stop(teacher(x))))
level learns { memory weights(student); objective loss; update adam(1e-2) }
level holds { every never; memory rest(teacher) }
"""
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(8, 3))
    b, x = nestflow.compile(spec, teacher=teacher, student=nn.Linear(4, 3)), torch.randn(2, 5, 4)
    kept = copy.deepcopy(teacher)
    losses = [b.step({"x": x})["loss"] for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]
    teacher.eval(), kept.eval()  # step() has put all in training mode; the forward took the frozen part back
    assert_same_state(teacher, kept)

    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    moved = copy.deepcopy(net.state_dict())
    spec = "nestflow 1\ninput x : float[4]\nextern net(input) : float[4]\noutput net(x)\n"
    spec += "level a { memory weights(net); objective mean(square(net(x))); update adam(1e-2) }\n"
    b = nestflow.compile(spec, net=net)
    assert not b.module.training
    b.module(x=torch.randn(3, 4))
    assert all(torch.equal(moved[n], v) for n, v in net.state_dict().items())
    b.step({"x": torch.randn(3, 4)})
    assert b.module.training and net.training and int(net[1].num_batches_tracked) == 1
    with torch.no_grad():
        b.stream(1).feed(x=torch.randn(1, 4))  # a stream evaluates, whatever the mode is, and puts it back
    assert net.training and int(net[1].num_batches_tracked) == 1


def test_dgd_reads_the_inputs_of_a_network() -> None:
    """Beside the same network written in the language."""
    head = "nestflow 1\ninput x : float[T, 4]\ninput v : float[T, 3]\n"
    level = "level a { memory weights(net); objective mean(square(net(x) - v)); update dgd(0.1) }\noutput net(x)\n"
    net = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False)).double()
    b = nestflow.compile(head + "extern net(input) : float[T, 3]\n" + level, net=net)
    own = nestflow.compile(head + "flow net(x) { return linear(tanh(linear(x, 5)), 3) }\n" + level, dtype="float64")
    with torch.no_grad():
        for w, p in zip(own.module.weights.values(), net.parameters(), strict=True):
            w.copy_(p)
    x, v = torch.randn(2, 6, 4).double(), torch.randn(2, 6, 3).double()
    for _ in range(3):
        assert b.step({"x": x, "v": v})["loss"] == pytest.approx(own.step({"x": x, "v": v})["loss"], rel=1e-12)
    for w, p in zip(own.module.weights.values(), net.parameters(), strict=True):
        torch.testing.assert_close(w, p)


def test_yaml_says_the_same() -> None:
    yaml = f"""
nestflow: 1
inputs: {{tokens: "int[T] in [0, {VOCAB})"}}
extern: {{"net(input_ids, scale = 2.0)": "float[T, {VOCAB}]", other: null}}
output: net(tokens)
levels:
  a: {{memory: weights(net), objective: "cross_entropy(net(tokens), next(tokens))", update: adam(1e-3)}}
  b: {{every: never, memory: rest(other)}}
"""
    b = nestflow.compile(yaml, net=causal(), other=nn.Linear(2, 2).double())
    assert [(n.name, n.inputs) for n in b.graph.networks] == [("net", ("input_ids", "scale")), ("other", None)]
    torch.testing.assert_close(b.module(tokens=tokens()), b.module.net(tokens(), 2.0))


FLOW = "nestflow 1\ninput x : float[T, 6]\nextern net(x) : float[T, 6]\n"
FLOW += "flow f(z) { return net(z) + z }\noutput m(x)\n"


def test_a_network_where_it_cannot_stand() -> None:
    head = FLOW
    level = (
        "level m(x) {{ every 1 token; memory {0}; key {1}; value x; query x; objective l2; update gd(0.1); return y }}"
    )
    assert code(lambda: nestflow.check(head + level.format("matrix", "net(x)"))) == "NF443"
    assert code(lambda: nestflow.check(head + level.format("net", "x"))) == "NF226"
    assert code(lambda: nestflow.check(head + level.format("f", "x"))) == "NF443"
    update = level.format("matrix", "x").replace("gd(0.1)", "gd(net(x))")
    assert code(lambda: nestflow.check(head + update)) == "NF443"
    top = head.replace("m(x)", "f(x)") + "level up { memory net; init a; objective mean(up(x)); update gd(0.1) }\n"
    top += "level a { memory weights(net); objective mean(f(x)); update gd(0.1) }"
    assert "NF490" in {d.code for d in _mistakes(lambda: nestflow.check(top))}


def _mistakes(act: object) -> tuple[nestflow.Diagnostic, ...]:
    with pytest.raises(NestflowError) as e:
        act()  # type: ignore[operator]
    return e.value.diagnostics


def test_a_flow_that_calls_a_network_serves_a_level() -> None:
    """Its gradients too, in each way to lower a memory."""
    head = FLOW
    levels = {
        "delta": "memory matrix; key f(x) |> linear |> l2norm; value linear(x); query linear(x); update gd(0.1)",
        "chunk": "chunk 2; memory mlp(depth = 2); key linear(f(x)); value linear(x); query f(x); update gd(0.1)",
        "scan": "memory mlp(depth = 2); key linear(f(x)); value linear(x); query linear(x); update adam(0.1)",
    }

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.inner(x.cumsum(1)))

    for how, fields in levels.items():
        torch.manual_seed(0)
        spec = head + f"level m(x) {{ every 1 token; {fields}; objective l2; return f(y) }}"
        b = nestflow.compile(spec, net=Sum().double())
        assert b.how() == {"m": how}
        x = torch.randn(2, 5, 6).double()
        y, ref = b.module(x=x), b.reference()(x=x)
        torch.testing.assert_close(y, ref)
        learns = list(b.module.weights.values())
        for a, r in zip(
            torch.autograd.grad(y.square().sum(), learns), torch.autograd.grad(ref.square().sum(), learns), strict=True
        ):
            torch.testing.assert_close(a, r)
        s = b.stream(2)
        torch.testing.assert_close(torch.cat([s.feed(x=x[:, :2]), s.feed(x=x[:, 2:])], 1), y)
