"""Learning inside a step, with gradients through all of it: our `rounds` beside the loops of higher and TorchOpt."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import nestflow
from benchmarks.machine import version
from benchmarks.pair import Pair
from benchmarks.same import apart
from benchmarks.timing import Run

SPEC = Path(__file__).with_name("maml.nl")
ROUNDS, WIDTH, CLASSES = 5, 16, 5
RATES = {"sgd": 0.1, "adam": 0.01}  # as in the spec
LIMIT = 1e-6  # of the largest gradient, in float64
Batch = dict[str, Tensor]
Query = Callable[[nn.Module, Batch], Tensor]  # a network and tasks -> mean query loss after learning


def tasks(count: int, examples: int, dtype: torch.dtype = torch.float32) -> Batch:
    """x [tasks, examples, 16], labels [tasks, examples]."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(2, count, examples, WIDTH, generator=source).to(dtype)
    y = torch.randint(CLASSES, (2, count, examples), generator=source)
    return {"support.x": x[0], "support.label": y[0], "query.x": x[1], "query.label": y[1]}


def network(weights: dict[str, Tensor]) -> nn.Module:
    """The spec's network in torch, with its weights."""
    hidden = weights["net.linear.weight"].shape[0]
    net = nn.Sequential(
        nn.Linear(WIDTH, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, CLASSES)
    )
    net.load_state_dict(
        {
            f"{at}.{kind}": weights[f"net.{part}.{kind}"]
            for at, part in ((0, "linear"), (2, "linear_2"), (4, "linear_3"))
            for kind in ("weight", "bias")
        }
    )
    return net.to(weights["net.linear.weight"].dtype)


def by_higher(rule: str) -> Query:
    """Its loop, task after task."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import higher

    def query(net: nn.Module, b: Batch) -> Tensor:
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[rule]
        losses = []
        for i in range(len(b["query.x"])):
            own = kind(net.parameters(), **({"eps": 0.0} if rule == "adam" else {}), lr=RATES[rule])
            with higher.innerloop_ctx(net, own, copy_initial_weights=False) as (copy, inner):
                for _ in range(ROUNDS):
                    inner.step(F.cross_entropy(copy(b["support.x"][i]), b["support.label"][i]))
                losses.append(F.cross_entropy(copy(b["query.x"][i]), b["query.label"][i]))
        return torch.stack(losses).mean()

    return query


def by_torchopt(rule: str) -> Query:
    """Its optimizers that are modules, task after task, as in its own example of MAML."""
    import torchopt

    def query(net: nn.Module, b: Batch) -> Tensor:
        inner = {"sgd": torchopt.MetaSGD, "adam": torchopt.MetaAdam}[rule](net, lr=RATES[rule])
        start = torchopt.extract_state_dict(net, by="reference"), torchopt.extract_state_dict(inner, by="reference")
        losses = []
        for i in range(len(b["query.x"])):
            for _ in range(ROUNDS):
                inner.step(F.cross_entropy(net(b["support.x"][i]), b["support.label"][i]))
            losses.append(F.cross_entropy(net(b["query.x"][i]), b["query.label"][i]))
            torchopt.recover_state_dict(net, start[0])
            torchopt.recover_state_dict(inner, start[1])
        return torch.stack(losses).mean()

    return query


def by_torchopt_vmap(rule: str) -> Query:
    """Its functions, all tasks at once by `torch.func.vmap`: what one would write who needs it fast."""
    import torchopt

    rule_ = {"sgd": torchopt.sgd, "adam": torchopt.adam}[rule](lr=RATES[rule])

    def query(net: nn.Module, b: Batch) -> Tensor:
        start = dict(net.named_parameters())

        def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(functional_call(net, params, (x,)), y)

        def one(x: Tensor, y: Tensor, qx: Tensor, qy: Tensor) -> Tensor:
            params = {n: p + 0 * x.sum() for n, p in start.items()}  # a copy for each task: its moments are too
            state = rule_.init(params)
            for _ in range(ROUNDS):
                steps, state = rule_.update(torch.func.grad(loss)(params, x, y), state, inplace=False)
                params = torchopt.apply_updates(params, steps, inplace=False)
            return loss(params, qx, qy)

        return torch.func.vmap(one)(b["support.x"], b["support.label"], b["query.x"], b["query.label"]).mean()

    return query


PEERS: list[tuple[str, str, Callable[[str], Query]]] = [
    ("higher", "higher", by_higher),
    ("torchopt", "torchopt", by_torchopt),
    ("torchopt", "torchopt, functions and vmap", by_torchopt_vmap),
]
EPS = {"higher": 0.0, "torchopt": 1e-8}  # higher adds it before the bias is corrected, torch and we after
LOOSE = {("torchopt", "adam"): 1e-3}  # it corrects the bias in float32, whatever the parameters are


def ours(module: Any, b: Batch) -> Tensor:
    """The mean query loss of the copies."""
    scores = module(**{n: x for n, x in b.items() if n != "query.label"})
    return F.cross_entropy(scores.flatten(0, 1), b["query.label"].flatten())


def gradient(loss: Callable[[], Tensor], weights: list[Tensor]) -> list[Tensor]:
    return [g.reshape(-1) for g in torch.autograd.grad(loss(), weights)]


def compiled(rule: str, package: str) -> Any:
    """Our module, whose rule is the package's."""
    return nestflow.compile(str(SPEC), by_adam=rule == "adam", eps=EPS[package]).module


def difference(rule: str, package: str, query: Query) -> float:
    """Of the gradients of the mean query loss in float64, through all rounds."""
    module = compiled(rule, package).double()
    weights = dict(module.named_weights())
    net, b = network({n: w.detach() for n, w in weights.items()}), tasks(3, 6, torch.float64)
    want = gradient(lambda: query(net, b), list(net.parameters()))
    names = [f"net.{p}.{k}" for p in ("linear", "linear_2", "linear_3") for k in ("weight", "bias")]
    return apart(gradient(lambda: ours(module, b), [weights[n] for n in names]), want)


def passes(loss: Callable[[], Tensor], weights: list[Tensor]) -> dict[str, Run]:
    return {"training": lambda: gradient(loss, weights)}


def loops(quick: bool) -> Iterator[Pair]:
    """Forward, five rounds in each task, and backward through them."""
    count = 4 if quick else 32
    for rule in RATES:
        for package, label, make in PEERS:
            if version(package) is None:
                continue
            try:
                query = make(rule)
                error = difference(rule, package, query)
            except (ImportError, RuntimeError) as e:
                print(f"{label}, {rule}: {e}", file=sys.stderr)
                continue
            module, b = compiled(rule, package), tasks(count, 10)
            net = network(dict(module.named_weights()))
            mine = passes(lambda m=module, b=b: ours(m, b), [w for _, w in module.named_weights()])
            other = passes(lambda q=query, n=net, b=b: q(n, b), list(net.parameters()))
            what, limit = f"{ROUNDS} rounds of {rule} in {count} tasks", LOOSE.get((package, rule), LIMIT)
            yield Pair(what, label, version(package), mine, other, error, limit=limit)
