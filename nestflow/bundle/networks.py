"""Networks of the caller: what the compiler may know of them, how their frozen parts are kept still, how they run."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nestflow.diagnostics.core import NestflowError, fail
from nestflow.graph.model import LevelGraph
from nestflow.graph.networks import NetworkFacts, Parameter
from nestflow.ir.node import Type

FROZEN = "_nestflow_frozen"  # of a module: its own parameters that an `every never` level holds still
ROWS, TICKS = 3, (5, 6)
_DTYPES = {"int": torch.int64, "bool": torch.bool}


def split(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, nn.Module]]:
    """Keyword arguments as params and networks: a network is an `nn.Module`."""
    networks = {k: v for k, v in given.items() if isinstance(v, nn.Module)}
    return {k: v for k, v in given.items() if k not in networks}, networks


# --- facts --------------------------------------------------------------------------------------------------


def facts_of(networks: Mapping[str, nn.Module]) -> dict[str, NetworkFacts]:
    """What the level graph asks of each network. Raises NestflowError NF561."""
    return {name: _facts(name, net) for name, net in networks.items()}


def _facts(name: str, net: nn.Module) -> NetworkFacts:
    paths: dict[int, list[str]] = {}
    found: dict[int, nn.Parameter] = {}
    for path, p in net.named_parameters(remove_duplicate=False):
        if isinstance(p, nn.parameter.UninitializedParameter):
            message = f"`{path}` of the network `{name}` has no shape yet"
            raise fail("NF561", message, help="run the network once before it is given: its lazy parts are then made")
        paths.setdefault(id(p), []).append(path)
        found[id(p)] = p
    multiplies = {id(m.weight) for m in net.modules() if isinstance(m, nn.Linear)}
    parameters = tuple(
        Parameter(names[0], tuple(found[i].shape), i in multiplies, tuple(names[1:])) for i, names in paths.items()
    )
    takes, needs = _arguments(net)
    return NetworkFacts(type(net).__name__, parameters, takes, needs, _probe(name, net))


def _arguments(net: nn.Module) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The names that the network's forward takes (None: any), and those that it needs."""
    try:
        parameters = inspect.signature(net.forward).parameters.values()
    except (TypeError, ValueError):
        return None, ()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes = tuple(p.name for p in named)
    needs = tuple(p.name for p in named if p.default is p.empty)
    return (None if any(p.kind is p.VAR_KEYWORD for p in parameters) else takes), needs


def _probe(name: str, net: nn.Module) -> Callable[[tuple[tuple[str, Any], ...]], Mapping[str, Type]]:
    def run(asked: tuple[tuple[str, Any], ...], ticks: int) -> Any:
        dtype, device = kind_of([net])
        given: dict[str, Any] = {}
        for key, t in asked:
            if isinstance(t, Type):
                shape = (ROWS, *((ticks,) if t.clock else ()), *t.shape)
                given[key] = torch.zeros(shape, dtype=_DTYPES.get(t.dtype, dtype), device=device)
            else:
                given[key] = t
        with torch.no_grad(), torch.random.fork_rng(devices=[]), still(net), mode(net, False):
            return net(**given)

    def probe(asked: tuple[tuple[str, Any], ...]) -> Mapping[str, Type]:
        try:
            short, long = (run(asked, t) for t in TICKS)
        except NestflowError:
            raise
        except Exception as e:  # whatever the caller's network raises on a small input
            said = str(e).strip().splitlines()[0][:120] if str(e).strip() else ""
            message = f"`{name}` failed on a small input that would have shown its type ({type(e).__name__}: {said})"
            raise fail("NF446", message, help=f"write it: `extern {name}(…) : float[T, 64]`") from e
        clock = next((t.clock for _, t in asked if isinstance(t, Type) and t.clock), None)
        types: dict[str, Type] = {}
        for part in ("", "logits"):
            a, b = (x if not part else getattr(x, part, None) for x in (short, long))
            if isinstance(a, Tensor) and isinstance(b, Tensor):
                types[part] = _type_of(name, a, b, clock)
        return types

    return probe


def _type_of(name: str, a: Tensor, b: Tensor, clock: str | None) -> Type:
    """The type of a result from what it is for two lengths of the input."""
    ticks = clock is not None and a.ndim >= 2 and (a.shape[1], b.shape[1]) == TICKS
    lead = 2 if ticks else 1
    if a.ndim < 1 or a.shape[0] != ROWS or a.shape[lead:] != b.shape[lead:] or a.ndim != b.ndim or a.is_complex():
        message = (
            f"`{name}` gives {list(a.shape)} for {ROWS} rows of {TICKS[0]} ticks, and {list(b.shape)} for {TICKS[1]}"
        )
        help_ = "the batch comes first, then the token axis where there is one, then the features"
        raise fail("NF446", message, help=help_)
    dtype = "float" if a.is_floating_point() else "bool" if a.dtype == torch.bool else "int"
    return Type(dtype, tuple(a.shape[lead:]), True, clock if ticks else None)


# --- the modules --------------------------------------------------------------------------------------------


def kind_of(networks: Iterable[nn.Module]) -> tuple[torch.dtype, torch.device]:
    """Type and device of the first floating parameter."""
    for net in networks:
        for p in net.parameters():
            if p.is_floating_point():
                return p.dtype, p.device
    return torch.get_default_dtype(), torch.device("cpu")


def same_kind(networks: Mapping[str, nn.Module], dtype: torch.dtype | None, device: torch.device | None) -> None:
    """A network is used as it is: raise NF561 where another type or device was asked for than it has."""
    for name, net in networks.items():
        for path, p in net.named_parameters():
            if dtype is not None and p.is_floating_point() and p.dtype != dtype:
                have, want = (str(d).removeprefix("torch.") for d in (p.dtype, dtype))
                message = f"`{name}` is a network of {have} (`{path}`), and {want} was asked for"
                raise fail("NF561", message, help=f"move it first: `{name}.to(torch.{want})`; it is used as it is")
            if device is not None and p.device.type != device.type:
                message = f"`{name}` lies on {p.device} (`{path}`), and {device} was asked for"
                raise fail("NF561", message, help=f"move it first: `{name}.to({str(device)!r})`; it is used as it is")


def place_of(net: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a parameter, and its name there."""
    parent, _, leaf = name.rpartition(".")
    return net.get_submodule(parent), leaf


def parameters_of(graph: LevelGraph, networks: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """The networks' parameters by their paths in the graph."""
    found: dict[str, nn.Parameter] = {}
    for w in graph.weights:
        if w.role == "network":
            name, _, path = w.path.partition(".")
            found[w.path] = networks[name].get_parameter(path)
    return found


def buffers_of(networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The buffers that the networks' state dicts have, by path."""
    found: dict[str, Tensor] = {}
    for name, net in networks.items():
        kept = net.state_dict(keep_vars=True)
        found |= {f"{name}.{n}": b for n, b in net.named_buffers() if n in kept}
    return found


def needed(graph: LevelGraph, networks: Mapping[str, nn.Module]) -> None:
    """Raise NF560 where the spec declares a network and none is given."""
    for n in graph.networks:
        if n.name not in networks:
            raise fail(
                "NF560",
                f"`{graph.name}` runs on a network of yours, `{n.name}`, and none is given",
                n.span,
                f"from Python: `nestflow.compile(spec, {n.name}=model)`, `nestflow.load(path, {n.name}=model)`, or "
                f"`nestflow.optimizer(spec, {n.name}=model)`",
            )


def settle(graph: LevelGraph, networks: Mapping[str, nn.Module]) -> None:
    """Hold still what `every never` levels own: no gradients, eval mode, buffers that do not move.

    What an earlier spec held still and this one does not learns again; what the caller froze stays frozen.
    """
    frozen = {p for level in graph.step_levels if level.every == 0 for p in level.weights}
    for name, net in networks.items():
        _release(net)
        still_ids: set[int] = set()
        for w in graph.weights:
            if w.role == "network" and w.path in frozen and w.path.startswith(name + "."):
                module, leaf = place_of(net, w.path.removeprefix(name + "."))
                parameter = module._parameters[leaf]
                assert parameter is not None
                still_ids.add(id(parameter))
                if parameter.requires_grad:
                    parameter.requires_grad_(False)
                    module.__dict__.setdefault(FROZEN, []).append(leaf)
        _hold(net, still_ids)


def _release(net: nn.Module) -> None:
    for m in net.modules():
        for leaf in m.__dict__.pop(FROZEN, ()):
            parameter = m._parameters.get(leaf)
            if parameter is not None:
                parameter.requires_grad_(True)
        for key in [k for k, hook in m._forward_pre_hooks.items() if hook is stay_in_eval]:
            del m._forward_pre_hooks[key]
            m.train(net.training)


def _hold(module: nn.Module, frozen: set[int]) -> None:
    """The largest parts whose parameters are all frozen stay in eval mode, what has no parameters in them too."""
    own = [id(p) for p in module.parameters()]
    if own and all(i in frozen for i in own):
        module.register_forward_pre_hook(stay_in_eval)
        module.eval()
        return
    for child in module.children():
        _hold(child, frozen)


def stay_in_eval(module: nn.Module, _inputs: Any) -> None:
    """A hook of frozen parts: `train()` of the whole puts them in training mode, and their forward takes it back."""
    if module.training:
        module.eval()


@contextlib.contextmanager
def mode(net: nn.Module, training: bool) -> Iterator[None]:
    """The network in training or eval mode, then each of its parts as it was."""
    flags = {id(m) for m in net.modules() if m.training}
    if training and net.training:  # parts that the caller keeps in eval mode stay so
        yield
        return
    net.train(training)
    try:
        yield
    finally:
        for m in net.modules():
            m.training = id(m) in flags


@contextlib.contextmanager
def still(net: nn.Module) -> Iterator[None]:
    """Buffers as they were, afterwards."""
    kept = [(b, b.detach().clone()) for b in net.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for b, value in kept:
                b.copy_(value)
