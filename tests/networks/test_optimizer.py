"""`nestflow.optimizer(levels, net=model)`: levels that learn from the gradients of the caller's own `backward()`."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import nestflow
from nestflow.diagnostics.core import NestflowError
from tests.networks.nets import LEVELS, Causal, Noisy, causal, tokens

STEPS = 7


def code(act: object) -> str:
    with pytest.raises(NestflowError) as e:
        act()  # type: ignore[operator]
    return e.value.diagnostics[0].code


def train(net: Causal, steps: list[object], zero_each: bool = True) -> None:
    for i in range(STEPS):
        loss = net(tokens() + 0 * i).square().mean() + net.layers[0][0].weight.sum() * i
        loss.backward()
        for step in steps:
            step(i)  # type: ignore[operator]
        net.zero_grad(set_to_none=i % 2 == 0)


def test_levels_are_torchs_optimizers_at_their_own_pace() -> None:
    net, other = causal(), causal()
    opt = nestflow.optimizer(LEVELS, net=net)
    assert isinstance(opt, torch.optim.Optimizer)
    train(net, [lambda i: opt.step()])

    adamw = torch.optim.AdamW(other.layers[0].parameters(), 1e-2)
    sgd = torch.optim.SGD(other.layers[1].parameters(), 0.1, momentum=0.9)
    sums: dict[nn.Parameter, Tensor] = {}

    def slow(i: int) -> None:
        for p in other.layers[1].parameters():
            assert p.grad is not None
            sums[p] = sums.get(p, torch.zeros_like(p)) + p.grad
        if (i + 1) % 3 == 0:
            for p in other.layers[1].parameters():
                p.grad = sums[p]
            sgd.step()
            sums.clear()

    train(other, [lambda i: adamw.step(), slow])
    for (n, p), q in zip(net.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0, msg=n)
    assert opt.report()["slow"] == {"updated": False, "every": 3, "updates": STEPS // 3}


def test_pending_sums_survive_a_state_dict() -> None:
    net = causal()
    opt = nestflow.optimizer(LEVELS, net=net)
    for i in range(4):  # one tick into the second sum of the slow level
        (net(tokens()).square().mean() * (i + 1)).backward()
        opt.step()
        opt.zero_grad()
    later = copy.deepcopy(net)
    again = nestflow.optimizer(LEVELS, net=later)
    again.load_state_dict(copy.deepcopy(opt.state_dict()))
    for m, o in ((net, opt), (later, again)):
        for i in range(3):
            (m(tokens()).square().mean() * (i + 5)).backward()
            o.step()
            o.zero_grad()
    for p, q in zip(net.parameters(), later.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


def test_what_never_learns_is_frozen_and_what_another_spec_frees_learns_again() -> None:
    net = causal()
    net.layers[2][0].bias.requires_grad_(False)  # by the caller: it stays so, whoever owns it
    before = copy.deepcopy(net)
    nestflow.optimizer(LEVELS, net=net)
    learns = {n for n, p in net.named_parameters() if p.requires_grad}
    assert learns == {n for n, _ in net.named_parameters() if n.startswith(("layers.0.", "layers.1."))}
    nestflow.optimizer("nestflow 1\nextern net\nlevel all { memory weights(net); update adam(1e-3) }", net=net)
    assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in before.parameters()]


def test_a_frozen_part_is_in_eval_mode_and_its_buffers_do_not_move() -> None:
    torch.manual_seed(0)
    net = Noisy()
    spec = """nestflow 1
extern net
level top { memory weights(net, "second.**"); update adam(1e-2) }
level frozen { every never; memory rest(net) }
"""
    opt = nestflow.optimizer(spec, net=net)
    kept = copy.deepcopy(net.first.state_dict())
    x = torch.randn(8, 4)
    for _ in range(3):
        net.train()  # as every training loop says
        first, again = net.first(x), net.first(x)
        assert torch.equal(first, again), "no dropout in a frozen part"
        net(x).square().mean().backward()
        opt.step()
    assert all(torch.equal(kept[n], v) for n, v in net.first.state_dict().items())
    assert not net.first.training and net.second.training
    assert int(net.second[1].num_batches_tracked) == 3
    whole = copy.deepcopy(net).train()  # a copy is held still too
    whole(x)
    assert all(torch.equal(kept[n], v) for n, v in whole.first.state_dict().items())
    nestflow.optimizer("nestflow 1\nextern net\nlevel all { memory weights(net); update adam(1e-3) }", net=net)
    net.train()
    net(x)
    assert not torch.equal(kept["1.running_mean"], net.first[1].running_mean)


def test_shared_parameters_have_one_owner_by_any_name() -> None:
    spec = 'nestflow 1\nextern net\nlevel a {{ memory weights(net, "{}"); update gd(0.1) }}\n'
    spec += "level b {{ every never; memory rest(net) }}\n"
    for name in ("emb.weight", "head.weight"):
        net = causal()
        opt = nestflow.optimizer(spec.format(name), net=net)
        assert [p is net.emb.weight for g in opt.param_groups for p in g["params"]] == [True]
    two = 'nestflow 1\nextern net\nlevel a { memory weights(net, "emb.**"); update gd(0.1) }\n'
    two += 'level b { memory weights(net, "head.**"); update gd(0.1) }\nlevel c { every never; memory rest(net) }\n'
    assert code(lambda: nestflow.optimizer(two, net=causal())) == "NF411"


def test_a_parameter_without_a_gradient_stays_and_is_no_mistake() -> None:
    net = causal()
    opt = nestflow.optimizer("nestflow 1\nextern net\nlevel all { memory weights(net); update adamw(1e-2) }", net=net)
    kept = net.unused.weight.detach().clone()
    net(tokens()).sum().backward()
    opt.step()
    assert torch.equal(kept, net.unused.weight)


class Wrapper(nn.Module):
    """As the wrappers for several devices are: what they hold is `module`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_mistakes_are_told() -> None:
    with pytest.raises(NestflowError) as e:
        nestflow.optimizer(LEVELS, net=Wrapper(causal()))
    assert {d.code for d in e.value.diagnostics} == {"NF410"} and "model.module" in str(e.value)
    assert code(lambda: nestflow.optimizer(LEVELS)) == "NF560"
    assert code(lambda: nestflow.optimizer(LEVELS, nett=causal())) == "NF440"
    assert code(lambda: nestflow.optimizer(LEVELS, net=3)) == "NF561"
    assert code(lambda: nestflow.optimizer(LEVELS, net=nn.Linear)) == "NF561"
    assert code(lambda: nestflow.optimizer("adam")) == "NF544"
    assert code(lambda: nestflow.optimizer("cms_stack", causal().parameters())) == "NF560"
    lazy = nn.Sequential(nn.LazyLinear(3))
    assert code(lambda: nestflow.optimizer(LEVELS, net=lazy)) == "NF561"
    lost = 'nestflow 1\nextern net\nlevel a { memory weights(net, "emb.**"); update gd(0.1) }\n'
    assert code(lambda: nestflow.optimizer(lost, net=causal())) == "NF412"
    loss = "nestflow 1\ninput x : float[4]\nextern net(x) : float[4]\noutput net(x)\n"
    loss += "level a { memory weights(net); objective mean(square(net(x))); update gd(0.1) }\n"
    assert code(lambda: nestflow.optimizer(loss, net=nn.Sequential(nn.Linear(4, 4)))) in ("NF442", "NF564")
    never = "nestflow 1\nextern net\nlevel a { every never; memory rest(net) }\n"
    assert code(lambda: nestflow.optimizer(never, net=causal())) == "NF509"


def test_a_network_without_parameters() -> None:
    spec = 'nestflow 1\nextern net\nlevel a { every 1 step; memory weights(net, "**"); update gd(0.1) }\n'
    with pytest.raises(nestflow.NestflowError, match=r"NF410[\s\S]*it has no weights"):
        nestflow.optimizer(spec, net=torch.nn.Tanh())
