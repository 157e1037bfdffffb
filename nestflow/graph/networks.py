"""Networks of the caller (`extern`): their parameters among the weights, and what calls of them give.

The graph knows no torch: what it may ask of a network that was given is in `NetworkFacts`. Without one (`nestflow
check`) everything but its parameters is checked, and notes say what waits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nestflow.diagnostics.core import NestflowError, Related, fail
from nestflow.diagnostics.suggest import did_you_mean
from nestflow.graph.arguments import check_bounds
from nestflow.graph.declarations import bounds, input_type
from nestflow.graph.expressions import evaluate
from nestflow.graph.model import Init, Network, TailSpec, WeightSpec
from nestflow.graph.names import check_name
from nestflow.graph.scope import Env
from nestflow.graph.values import Partial, Quiet
from nestflow.ir.node import Node, Type, make
from nestflow.language import tree

UNKNOWN = "network"  # dtype of a result whose type nobody has said yet
FIELDS = ("logits", "loss")
Probe = Callable[[tuple[tuple[str, Any], ...]], Mapping[str, Type]]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a network. also: its other names, where parts share it."""

    name: str
    shape: tuple[int, ...]
    multiplies: bool = False
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class NetworkFacts:
    """A network as the graph sees it. arguments: the names that its forward takes, None where it takes any. needs:
    those without a default.

    probe: runs it on small inputs (name, Type or number) -> the type of each result: "" the whole, "logits". Raises
    NestflowError."""

    kind: str
    parameters: tuple[Parameter, ...]
    arguments: tuple[str, ...] | None = None
    needs: tuple[str, ...] = ()
    probe: Probe | None = None


@dataclass(frozen=True)
class NetworkValue:
    """An `extern` as a value: it is called, or its weights are owned."""

    statement: tree.Extern
    facts: NetworkFacts | None
    type: Type | None

    @property
    def name(self) -> str:
        return self.statement.name

    def state_node(self, expr: tree.Expr) -> Node:
        """Where a value is wanted, a bare network is none."""
        inputs = ", ".join(s.name for s in self.statement.slots or ())
        help_ = f"call it: `{self.name}({inputs})`" if inputs else f"its weights are `weights({self.name})`"
        raise fail("NF207", f"`{self.name}` is a network, and a value is needed here", expr.span, help_)


def declare(elab: Any, s: tree.Extern) -> None:
    """An `extern` statement: its name, its inputs' and its result's types, its parameters."""
    check_name(elab, s.name, s.span)
    names: set[str] = set()
    for slot in s.slots or ():  # they name what the network's forward takes, so none of them is taken
        if slot.name in names:
            raise elab.failure("NF220", f"two inputs of `{s.name}` are called `{slot.name}`", slot.span)
        names.add(slot.name)
    type_ = None if s.type is None else input_type(elab, s.type)
    facts = elab.given.get(s.name)
    value = NetworkValue(s, facts, type_)
    if s.type is not None and s.slots is None:
        message = f"`{s.name}` has a type and no inputs, so nothing can call it"
        raise elab.failure("NF441", message, s.type.span, f"`extern {s.name}(x) : float[T, 64]`, or no type")
    elab.networks[s.name] = value
    _arguments(elab, value)
    for p in facts.parameters if facts is not None else ():
        elab.count(_size(p.shape), s)
        path, also = f"{s.name}.{p.name}", tuple(f"{s.name}.{a}" for a in p.also)
        elab.root.weights.append(
            WeightSpec(path, p.shape, None, Init("given"), "network", p.multiplies, s.span, also=also)
        )


def _arguments(elab: Any, value: NetworkValue) -> None:
    """The slots are names that the network's forward takes."""
    known = value.facts.arguments if value.facts is not None else None
    for slot in value.statement.slots or () if known is not None else ():
        if known is not None and slot.name not in known:
            message = f"the network given as `{value.name}` takes no `{slot.name}`"
            listed = f"its forward takes {', '.join(f'`{n}`' for n in known) or 'nothing'}"
            near = did_you_mean(slot.name, known)
            raise elab.failure("NF442", message, slot.span, f"{near}; {listed}" if near else listed)
    slots = value.statement.slots
    for name in value.facts.needs if value.facts is not None and slots is not None else ():
        if name not in [s.name for s in slots or ()]:
            message = f"the network given as `{value.name}` needs `{name}`, which is not among its inputs"
            raise elab.failure("NF442", message, value.statement.span, f"`extern {value.name}({name}, …)`")


def check_given(elab: Any) -> None:
    """Raise NF440 for a network that was given and is not declared."""
    for name in elab.given:
        if name not in elab.networks:
            declared = ", ".join(f"`{n}`" for n in elab.networks)
            listed = f"it declares {declared}" if declared else f"`extern {name}` declares one"
            message = f"a network was given as `{name}`, and this spec declares none of that name"
            raise elab.failure("NF440", message, None, did_you_mean(name, elab.networks) or listed)


def networks(elab: Any) -> tuple[Network, ...]:
    """The networks of a graph, as declared."""
    return tuple(
        Network(
            v.name,
            None if v.statement.slots is None else tuple(s.name for s in v.statement.slots),
            v.type,
            v.facts is not None,
            v.name in elab.called_networks,
            v.statement.doc,
            v.statement.span,
        )
        for v in elab.networks.values()
    )


# --- calls --------------------------------------------------------------------------------------------------


def call(value: NetworkValue, args: list[Any], kwargs: dict[str, Any], env: Env, site: tree.Expr) -> Node:
    """A call of a network: its own forward, by the names of its inputs."""
    elab = env.elab
    if env.place not in ("flow", "top") or env.builder.memory is not None or env.flow_heads:
        where = {"rule": "an update", "level": "a level"}.get(env.place, "a memory, or per head")
        help_ = f"call it in a flow, and give what it gives to the level: `m({value.name}(x))`"
        raise elab.failure(
            "NF443", f"`{value.name}` is a network of yours, and cannot stand in {where}", site.span, help_
        )
    if value.statement.slots is None:
        message = f"`extern {value.name}` lends its weights only: it has no inputs to be called with"
        help_ = f"name them as its forward does: `extern {value.name}(x) : float[T, 64]`"
        raise elab.failure("NF441", message, site.span, help_)
    given = _bind(value, args, kwargs, env, site)
    inputs = {k: v for k, v in given.items() if isinstance(v, Node) and v.op != "const"}
    constants = tuple((k, v.value) for k, v in given.items() if isinstance(v, Node) and v.op == "const")
    if not inputs:
        raise elab.failure("NF444", f"`{value.name}` is called with no tensor", site.span, "give it an input")
    for name, x in inputs.items():
        if x.type.heads or x.type.short or not x.type.batch:
            message = f"`{name}` of `{value.name}` is an input of a network, one tensor a row, and this is {x.type}"
            raise elab.failure("NF444", message, site.span)
    elab.called_networks.add(value.name)
    types = _types(value, inputs, constants, env, site)
    ticks = any(x.type.clock for x in inputs.values())
    if env.place == "flow" and ticks and types[""].clock is None and types[""].dtype != UNKNOWN:
        message = f"`{value.name}` reads a sequence and gives one {types['']}: a flow works tick by tick"
        raise elab.failure("NF444", message, site.span, "call it in `output` or in a loss, outside flows")
    key = ("network", value.name, tuple((k, id(v)) for k, v in inputs.items()), constants)
    rel = env.builder.name(key, env.path(value.name), env.indices)
    tails: list[str] = []
    for name, x in inputs.items():
        tails.append(f"{rel}.{name}" if x.type.clock else "")
        if x.type.clock and all(t.path != tails[-1] for t in env.builder.tails):
            env.builder.tails.append(TailSpec(tails[-1], x.type, 0, grows=True))
    raw = make(
        "network",
        tuple(inputs.values()),
        Type(UNKNOWN, (), True, "T" if ticks else None),
        site.span,
        network=value.name,
        names=tuple(inputs),
        constants=constants,
        tails=tuple(tails),
    )
    return make("network_result", (raw,), types[""], site.span, field="", logits=types.get("logits"))


def field(result: Node, name: str, env: Env, site: tree.Expr) -> Node:
    """`.logits` and `.loss` of what a network gives."""
    raw = result.args[0]
    if name not in FIELDS:
        help_ = "`.logits` and `.loss` are what a network's result may have"
        raise env.elab.failure("NF203", f"`{name}`: there is no `.{name}` here", site.span, help_)
    if result["field"]:
        raise env.elab.failure("NF203", f"`.{name}` of `.{result['field']}`: there is no such part", site.span)
    if name == "loss":
        if env.place == "flow":
            message = f"`{raw['network']}(…).loss` is one number of the whole batch, and a flow works tick by tick"
            raise env.elab.failure("NF444", message, site.span, "name it outside flows: `loss = net(…).loss`")
        return make("network_result", (raw,), Type(), site.span, field="loss", logits=None)
    type_ = result["logits"] or result.type
    return make("network_result", (raw,), type_, site.span, field="logits", logits=None)


def known(node: Node, env_elab: Any, site: tree.Expr) -> Node:
    """The node, if its type is known. Raises NF445, or Quiet where the network that would say it is not there."""
    if node.op != "network_result" or node.type.dtype != UNKNOWN:
        return node
    name = node.args[0]["network"]
    if env_elab.networks[name].facts is None:
        env_elab.waiting = True
        raise Quiet
    message = f"what `{name}` gives is no tensor, and its parts are asked for by name"
    raise env_elab.failure("NF445", message, site.span, "`.logits` or `.loss` of the call")


def _bind(value: NetworkValue, args: list[Any], kwargs: dict[str, Any], env: Env, site: tree.Expr) -> dict[str, Any]:
    elab, slots = env.elab, value.statement.slots or ()
    names = [s.name for s in slots]
    if len(args) > len(names):
        message = f"`{value.name}` takes at most {len(names)} inputs, and this gives {len(args)}"
        raise elab.failure("NF213", message, site.span, f"its inputs are {', '.join(names) or 'none'}")
    given: dict[str, Any] = dict(zip(names, args, strict=False))
    for k, v in kwargs.items():
        if k not in names:
            raise elab.unknown_slot(value.name, k, names, site)
        if k in given:
            raise elab.failure("NF211", f"`{k}` is given twice", site.span)
        given[k] = v
    bound: dict[str, Any] = {}
    for s in slots:
        if s.name not in given and s.default is None:
            listed = f"its inputs are {', '.join(names)}"
            raise elab.failure("NF214", f"`{value.name}` needs `{s.name}`", site.span, listed)
        raw = given[s.name] if s.name in given else evaluate(s.default, elab.top) if s.default is not None else None
        if isinstance(raw, (Partial, str)):
            message = f"`{s.name}` of `{value.name}` is a tensor or a number"
            raise elab.failure("NF444", message, site.span)
        node = elab.as_node(raw, site, f"`{s.name}`")
        _fits(value, s, node, elab, site)
        bound[s.name] = node
    return bound


def _fits(value: NetworkValue, s: tree.Slot, node: Node, elab: Any, site: tree.Expr) -> None:
    domain = s.domain or (s.type.domain if s.type else None)
    if node.op == "const":
        if domain is not None:
            check_bounds(elab, value.name, s.name, bounds(elab, domain), node, site)
        return
    if s.type is None:
        return
    want = input_type(elab, s.type)
    if (want.dtype, want.shape, want.clock) != (node.type.dtype, node.type.shape, node.type.clock):
        related = (Related(s.span, "declared here"),) if s.span else ()
        message = f"`{s.name}` of `{value.name}` is {want}, and this is {node.type}"
        raise elab.failure("NF301", message, site.span, None, related)


def _types(
    value: NetworkValue, inputs: dict[str, Node], constants: tuple[tuple[str, Any], ...], env: Env, site: tree.Expr
) -> dict[str, Type]:
    """Types of the whole result ("") and of its `.logits`: as written, else as the network shows on a small input."""
    if value.type is not None:
        if value.type.clock and not any(x.type.clock for x in inputs.values()):
            message = f"`{value.name}` gives {value.type}, and no input of this call has the token axis"
            raise env.elab.failure("NF444", message, site.span)
        return {"": value.type, "logits": value.type}
    unknown = Type(UNKNOWN, (), True)
    if value.facts is None or value.facts.probe is None:
        return {"": unknown, "logits": unknown}
    asked = (*((k, v.type) for k, v in inputs.items()), *constants)
    try:
        found = value.facts.probe(asked)
    except NestflowError as e:
        raise NestflowError([d if d.span is not None else _placed(d, site) for d in e.diagnostics]) from e.__cause__
    return {"": unknown, "logits": unknown, **found}


def _placed(d: Any, site: tree.Expr) -> Any:
    from dataclasses import replace

    return replace(d, span=site.span)


def _size(shape: tuple[int, ...]) -> int:
    n = 1
    for d in shape:
        n *= d
    return n
