"""`cms_stack`: levels of a continuum on a network that was trained before, and the example that shows it."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import nestflow
from tests.networks.nets import assert_same_state

EXAMPLE = Path(__file__).parents[2] / "examples" / "cms_stack.py"


def example() -> Any:
    spec = importlib.util.spec_from_file_location("cms_stack_example", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def it() -> Any:
    return example()


def stacked(it: Any, net: Any, **params: Any) -> Any:
    return nestflow.optimizer("cms_stack", net=net, lr=1e-2, **(it.BANDS | params))


def test_a_rate_of_zero_leaves_the_network_as_it_was_bit_for_bit(it: Any) -> None:
    torch.manual_seed(0)
    net = it.Network()
    before, tokens = copy.deepcopy(net), it.text(it.NEW)
    opt = stacked(it, net, rate=0)
    assert torch.equal(net(tokens), before(tokens))
    it.train(net, opt, tokens, 18)
    assert opt.report()["cms_16"]["updates"] == 1
    assert_same_state(net, before)
    assert torch.equal(net(tokens), before(tokens))


def test_bands_learn_at_their_own_pace_from_the_mean_of_their_gradients(it: Any) -> None:
    """Beside Adam on clipped means, written as a loop."""
    torch.manual_seed(0)
    net = it.Network()
    plain, tokens = copy.deepcopy(net), it.text(it.NEW)
    opt = stacked(it, net, rate=0.5)
    bands = {every: list(plain.blocks[i].mlp.parameters()) for i, every in enumerate((1, 4, 16))}
    adams = {n: torch.optim.Adam(ps, 0.5 * 1e-2, (0.9, 0.95)) for n, ps in bands.items()}
    sums = {n: [torch.zeros_like(p) for p in ps] for n, ps in bands.items()}
    for step in range(1, 34):
        old = copy.deepcopy(net.state_dict())
        it.train(net, opt, tokens, 1)
        changed = {n for n, v in net.state_dict().items() if not torch.equal(v, old[n])}
        due = [i for i, every in enumerate((1, 4, 16)) if step % every == 0]
        assert changed and {n.split(".mlp")[0] for n in changed} == {f"blocks.{i}" for i in due}
        plain.zero_grad()
        it.loss_of(plain, tokens).backward()
        for every, ps in bands.items():
            for s, p in zip(sums[every], ps, strict=True):
                s += p.grad
        for every, ps in bands.items():
            if step % every == 0:
                for s, p in zip(sums[every], ps, strict=True):
                    p.grad = s / every
                    s.zero_()
                torch.nn.utils.clip_grad_norm_(ps, 1.0)
                adams[every].step()
    for (n, p), q in zip(net.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5, msg=n)


def test_the_example_runs_and_the_rate_dials(it: Any, capsys: pytest.CaptureFixture[str]) -> None:
    result = it.main(steps=32)
    (old_0, new_0), (old_1, new_1) = result[0.0], result[1.0]
    assert new_1 < result[0.3][1] < new_0 and old_0 < result[0.3][0] < old_1
    assert capsys.readouterr().out.count("rate") == 3


def test_it_is_shown_without_a_network(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from nestflow.cli.main import app

    graph = nestflow.check("cms_stack")
    assert [n.code for n in graph.notes] == ["NF460"] and graph.doc and all(p.doc for p in graph.params)
    assert [(f.name, f.kind) for f in graph.flows] == [("net", "network")]
    run = CliRunner().invoke
    assert "a network of yours" in run(app, ["check", "cms_stack"]).stdout
    drawn = run(app, ["view", "cms_stack"]).stdout
    assert "every 16 steps" in drawn and "of yours" in drawn and "│ net " in drawn
    for ending, box in (("mmd", 'net0[["<b>net</b>'), ("dot", 'net0 [label="net')):
        assert run(app, ["view", "cms_stack", "-o", str(tmp_path / f"c.{ending}")]).exit_code == 0
        assert box in (tmp_path / f"c.{ending}").read_text(encoding="utf-8")
    assert run(app, ["explain", "cms_stack"]).exit_code == 0
    assert run(app, ["view", "cms_stack", "-o", str(tmp_path / "c.svg")]).exit_code == 0
    assert ">net<" in (tmp_path / "c.svg").read_text(encoding="utf-8")
