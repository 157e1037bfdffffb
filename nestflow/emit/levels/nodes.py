"""The expressions inside a level's loop: memory functions read at a state, at every tick of a piece, and errors.

Leaves of a loop, besides what the level's context gives:
  state(memory, tensor, when)    a tensor [B, H, *shape]. when: "now" as the piece began, "chunk" as the chunk began,
                                 "error" where errors are taken, "new" as the piece ends; rule leaves: see level_rule
  linear_at(x, h, e, ...)        W_t x_t for every tick (closed forms); place: "after" or "before" the tick's update;
                                 without a place: what these errors of ticks before leave of it, its starts apart
  tensor_at(g)                   the tensor itself at every tick; matrix_at(h, e, ...): from the factors of its errors
  solved(x, h, a, b)             errors u_t = a_t W_{t−1} x_t + b_t of a delta rule
  channels(x, h, gate)           what x reads of each error at each tick where every key channel has a gate: then it is
                                 linear_at(channels, e, ...), solved(channels, a, b), matrix_at(gate, h, e, ...);
                                 no leaf: where no state enters, it is made of all pieces before the loop
  each_tick(x)                   a value without ticks, seen at every tick of the piece
  last(x), final(x)              the value at the piece's last tick, without and with a token axis of size 1
  woven(x, ...)                  what the rounds of a tick have, as ticks of their own; unwoven(x; rounds, which)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from nestflow.emit.levels.facts import reads_new
from nestflow.graph.model import Instance, Memory
from nestflow.graph.state import keeps_anchor, state_tensors
from nestflow.ir import ops
from nestflow.ir.construct import rewrite
from nestflow.ir.node import Node, Type, make, walk
from nestflow.ir.pullback import times
from nestflow.lowering.errors import stored
from nestflow.lowering.linear_rule import Carry, LinearRule
from nestflow.lowering.patterns.delta import system
from nestflow.lowering.patterns.setting import erasing
from nestflow.lowering.plan import LevelPlan, MemoryPlan

READINGS = ["linear_at", "tensor_at", "matrix_at", "solved", "woven", "unwoven"]
LOOP = frozenset(["state", "each_tick", "last", "final", "below", *READINGS])
Theta = Callable[[Node], Node]


def state(memory: Memory, tensor: str, when: str, type_: Type) -> Node:
    if when == "chunk" and not keeps_anchor(memory):  # errors are taken at the state as it stands
        when = "now"
    return ops.leaf("state", type_.with_(batch=True), memory=memory.name, tensor=tensor, when=when)


def per_tick(memory: Memory, shape: tuple[int, ...] = ()) -> Type:
    """The type of a value that the memory has at every tick."""
    return Type(shape=shape, batch=True, clock="T", heads=memory.heads)


class Nodes:
    """Expands recalls and errors of one level into loop expressions."""

    def __init__(self, plan: LevelPlan) -> None:
        self.instance: Instance = plan.instance
        self.plans = {p.memory.name: p for q in plan.memories for p in (q, *q.apart)}
        self.memo: dict[Node, Node] = {}
        self.put: Callable[[Node], Node] = lambda n: n  # memories that run side by side, put together
        self.errors: dict[str, dict[str, tuple[tuple[Node, Node], ...]]] = {}
        self.dense: dict[str, dict[str, Node]] = {}
        self.rules: dict[tuple[str, str], LinearRule] = {}
        self.left: dict[tuple[str, Node], Node] = {}  # memory, input -> a node `channels` of that input
        self.folded: dict[tuple[str, str], Node] = {}  # rates that multiply the errors instead of their coefficients

    # context ---------------------------------------------------------------------------------------

    def context(self, roots: Iterable[Node]) -> list[Node]:
        """Context expressions with the recalls of the level's memories put in."""
        return rewrite(roots, self._change, self.memo)

    def _change(self, n: Node, args: tuple[Node, ...]) -> Node | None:
        if n.op != "recall" or self.plans[n["memory"]].pattern == "cache":
            return None
        plan = self.plans[n["memory"]]
        if plan.memory.rule is None:  # `every never`
            return shaped(self.plain(plan.memory, args, "now", n), n)
        if n["mode"] == "gradient":
            return shaped(self.taken(plan, n), n)
        if n["mode"] == "return" and not (plan.memory.read == "chunk_start" and keeps_anchor(plan.memory)):
            return self.read(plan, args, n)
        return shaped(self.plain(plan.memory, args, "chunk", n), n)

    def taken(self, plan: MemoryPlan, n: Node) -> Node:
        """`m.g`: the gradient that the memory takes at a tick, in full."""
        m, tensor = plan.memory, n["tensor"]
        g = plan.errors.dense.get(tensor)
        for h, e in plan.errors.factors.get(tensor, ()):
            full = ops.outer(e, h)
            g = full if g is None else ops.binary("add", g, full)
        if g is None:  # the objective does not read it
            return ops.binary("mul", ops.const(0.0), state(m, tensor, "now", n.type.with_(clock=None)))
        (found,) = self._at(m, [g])
        return ops.stop(found) if m.gradient == "stop" else found

    def plain(self, memory: Memory, key: tuple[Node, ...], when: str, n: Node) -> Node:
        """M(key) at one state, or the state itself."""
        return self._function(memory, key, lambda t: linked(memory, state(memory, t["tensor"], when, t.type)), n)

    def _function(
        self, memory: Memory, key: tuple[Node, ...], theta: Theta, recall: Node, linear: Theta | None = None
    ) -> Node:
        """The memory's function with its key and its tensors put in; linear: what becomes of a map by a tensor. Where
        the recall names a tensor, that tensor."""
        assert memory.function is not None
        if recall.get("tensor") is not None:
            return theta(stored(memory, recall["tensor"]))

        def change(n: Node, args: tuple[Node, ...]) -> Node | None:
            if n.op == "slot" and n["name"] == "key":
                return key[0]
            if n.op == "theta":
                return theta(n)
            if n.op == "linear" and n.args[1].op == "theta" and linear is not None:
                return linear(make("linear", (args[0], n.args[1]), n.type))
            return None

        return rewrite([memory.function.result], change)[0]

    def read(self, plan: MemoryPlan, key: tuple[Node, ...], n: Node) -> Node:
        """A recall in `return`: at every tick, the state after it or before it."""
        m = plan.memory
        if not plan.closed:
            if m.read != "after":
                return shaped(self.plain(m, key, "now", n), n)
            last = tuple(make("final", (k,), k.type) for k in key)
            new = shaped(self.plain(m, last, "new", n), n, "final")
            return new if m.every == 1 else make("last_learns", (shaped(self.plain(m, key, "now", n), n), new), n.type)
        self.learn(plan)
        place = "after" if m.read == "after" else "before"

        def linear(x: Node) -> Node:
            tensor = x.args[1]["tensor"]
            pairs = self.errors[m.name].get(tensor)
            if pairs is None or m.link is not None or len(x.args[0].type.shape) != 1:
                return ops.linear(x.args[0], theta(x.args[1]))
            args = self._looking(plan, tensor, again(plan, x.args[0]), place)
            return seen("linear_at", args, x.type.shape, tensor)

        def theta(t: Node) -> Node:
            return linked(m, kept(t))

        def kept(t: Node) -> Node:
            tensor = t["tensor"]
            g = self.dense[m.name].get(tensor)
            if g is None and tensor in self.errors[m.name]:
                # a matrix read otherwise than by `linear`: its errors in full
                factors = tuple(f for pair in self.errors[m.name][tensor] for f in pair)
                if m.retain_on == "key":
                    factors = (self.rule(plan, tensor).carries[0].decay, *factors)
                return seen("matrix_at", factors, t.type.shape, tensor)
            if g is None:
                each = make("each_tick", (state(m, tensor, "now", t.type),), per_tick(m, t.type.shape))
                g = again(plan, ops.binary("mul", ops.const(0.0), each))
            return seen("tensor_at", (g,), t.type.shape, tensor)

        def seen(op: str, args: tuple[Node, ...], shape: tuple[int, ...], tensor: str) -> Node:
            """At every tick: of several rounds, as the last has left it or the first found it."""
            found = make(op, args, per_tick(m, shape), memory=m.name, tensor=tensor, place=place)
            turns = len(plan.woven)
            if turns == 1:
                return found
            return make("unwoven", (found,), found.type, rounds=turns, which=turns - 1 if place == "after" else 0)

        return shaped(self._function(m, key, theta, n, linear), n)

    # errors ----------------------------------------------------------------------------------------

    def learn(self, plan: MemoryPlan) -> None:
        """The errors of a memory as loop expressions: `errors` (pairs h, e) and `dense` by tensor."""
        m = plan.memory
        if m.name in self.errors:
            return
        if plan.pattern == "delta":
            (tensor,) = plan.rules
            parts = [self._at(p.memory, system(p.memory, p.errors, p.rules[tensor]).nodes()) for p in plan.woven]
            x, h, a, b, *known = (weave(m, values) for values in zip(*parts, strict=True))
            self.errors[m.name], self.dense[m.name] = {tensor: tuple(zip(known[::2], known[1::2]))}, {}
            self._fold(plan, tensor)
            if known:  # the state of the tick before is made of these too
                args = self._looking(plan, tensor, x, "before")
                seen = make("linear_at", args, per_tick(m, b.type.shape), memory=m.name, tensor=tensor)
                b = ops.binary("add", b, times(a, seen))
            solved = (h, self._solved(plan, tensor, x, h, a, b))
            self.errors[m.name][tensor] = (solved, *self.errors[m.name][tensor])
            self._stop(m)
            return
        flat = [self._at(p.memory, p.errors.nodes()) for p in plan.woven]
        at = (weave(m, values) for values in zip(*flat, strict=True))
        self.errors[m.name] = {t: tuple((next(at), next(at)) for _ in p) for t, p in plan.errors.factors.items()}
        self.dense[m.name] = {t: next(at) for t in plan.errors.dense}
        for tensor in plan.rules:
            self._learn_by(plan, tensor)
        self._stop(m)

    def _learn_by(self, plan: MemoryPlan, tensor: str) -> None:
        """Put a delta rule's own look at the weight, and a folded rate, into the errors of a tensor."""
        m, rule = plan.memory, plan.rules[tensor]
        if rule.dgd is not None:
            ((h, e),) = self.errors[m.name][tensor]
            (a,) = self._at(m, [erasing(m, tensor)])
            self.errors[m.name][tensor] = ((h, self._solved(plan, tensor, h, h, a, e)),)
            return
        self._fold(plan, tensor)

    def _fold(self, plan: MemoryPlan, tensor: str) -> None:
        """A rate that multiplies the errors instead of their coefficients."""
        m = plan.memory
        self.rule(plan, tensor)
        rate = self.folded.get((m.name, tensor))
        if rate is None:
            return
        if tensor in self.errors[m.name]:
            pairs = self.errors[m.name][tensor]
            self.errors[m.name][tensor] = tuple((h, ops.binary("mul", rate, e)) for h, e in pairs)
        if tensor in self.dense[m.name]:
            self.dense[m.name][tensor] = ops.binary("mul", rate, self.dense[m.name][tensor])

    def _solved(self, plan: MemoryPlan, tensor: str, x: Node, h: Node, a: Node, b: Node) -> Node:
        m = plan.memory
        self.rule(plan, tensor)
        rate = self.folded.get((m.name, tensor))
        looks = (self.channels(plan, tensor, x, h, "before"),) if m.retain_on == "key" else (x, h)
        args = (*looks, a, b) if rate is None else (*looks, a, b, times(ops.const(-1.0), rate))
        return make("solved", args, per_tick(m, b.type.shape), memory=m.name, tensor=tensor)

    def _looking(self, plan: MemoryPlan, tensor: str, x: Node, place: str) -> tuple[Node, ...]:
        """What `linear_at` takes for x: x and the factors of all errors, or these made ready for gates of channels."""
        pairs = self.errors[plan.memory.name][tensor]
        if plan.memory.retain_on == "key":
            return tuple(f for h, e in pairs for f in (self.channels(plan, tensor, x, h, place), e))
        return (x, *(f for pair in pairs for f in pair))

    def channels(self, plan: MemoryPlan, tensor: str, x: Node, h: Node, place: str) -> Node:
        """x and h with the gates of a memory whose retain is a vector."""
        gate = self.rule(plan, tensor).carries[0].decay
        turns, type_ = len(plan.woven), per_tick(plan.memory, h.type.shape)
        made = make("channels", (x, h, gate), type_, before=place == "before", turns=turns)
        if not reads_new(made):  # what is left in the memory does not wait for what others learn
            self.left.setdefault((plan.memory.name, h), made)
        return made

    def leaves(self, plan: MemoryPlan, tensor: str) -> list[tuple[Node, Node]]:
        """What the errors of such a memory leave in it: channels, e. Any reading of an input tells what it leaves."""
        pairs = self.errors[plan.memory.name][tensor]
        for h, _ in pairs:
            if (plan.memory.name, h) not in self.left:
                self.channels(plan, tensor, h, h, "after")
        return [(self.left[plan.memory.name, h], e) for h, e in pairs]

    def rule(self, plan: MemoryPlan, tensor: str) -> LinearRule:
        """The closed form of a tensor with its rates as loop expressions. A rate that depends on the state and
        multiplies g in one place is folded into the errors: then tensors with other rates share the rows."""
        m, key = plan.memory, (plan.memory.name, tensor)
        if key in self.rules:
            return self.rules[key]

        def rate(coefficients: Iterable[Node]) -> Node:
            return weave(m, [self.rate(p.memory, k) for p, k in zip(plan.woven, coefficients, strict=True)])

        carries = [
            Carry(
                c.slot,
                rate(one.decay for one in turns),
                tuple((where, rate(one.drive[i][1] for one in turns)) for i, (where, _) in enumerate(c.drive)),
            )
            for turns in zip(*(p.rules[tensor].carries for p in plan.woven), strict=True)
            for c in turns[:1]
        ]
        places = [(i, j) for i, c in enumerate(carries) for j, (where, _) in enumerate(c.drive) if where == "g"]
        if len(places) == 1 and m.every == 1:
            ((i, j),) = places
            factor = carries[i].drive[j][1]
            if looped_nodes([factor]) or m.retain_on == "key":
                drive = list(carries[i].drive)
                drive[j] = ("g", ops.const(1.0))
                carries[i] = replace(carries[i], drive=tuple(drive))
                self.folded[key] = factor
        self.rules[key] = LinearRule(tuple(carries))
        return self.rules[key]

    def _stop(self, m: Memory) -> None:
        """`gradient stop`: the steps are constants for slower levels."""
        if m.gradient == "stop":
            for tensor, pairs in self.errors[m.name].items():
                self.errors[m.name][tensor] = tuple((ops.stop(h), ops.stop(e)) for h, e in pairs)
            self.dense[m.name] = {t: ops.stop(g) for t, g in self.dense[m.name].items()}

    def _at(self, m: Memory, nodes: Iterable[Node]) -> list[Node]:
        """Errors with the state at which they are taken put in."""
        when = "error" if m.decay_first else "chunk"

        def change(n: Node, args: tuple[Node, ...]) -> Node | None:
            return linked(m, state(m, n["tensor"], when, n.type)) if n.op == "theta" else None

        return self.context(rewrite(nodes, change))

    def rate(self, m: Memory, n: Node) -> Node:
        """An expression of a rule or gate over the context; errors' inputs in it are at the chunk's first state."""
        return self.put(self._at(m, [n])[0])


def weave(m: Memory, values: Sequence[Node]) -> Node:
    """What the rounds of a tick have each, as ticks of their own (`nestflow.ops.rounds`)."""
    first = values[0]
    if len(values) == 1 or (first.op == "const" and all(x is first for x in values)):
        return first
    return make("woven", tuple(values), per_tick(m, first.type.shape))


def again(plan: MemoryPlan, x: Node) -> Node:
    """What every round of a tick has."""
    return weave(plan.memory, [x] * len(plan.woven))


def linked(m: Memory, a: Node) -> Node:
    """θ = link(A) of one tensor."""
    if m.link is None:
        return a
    q, shape = m.link.number, a.type.shape
    if m.link.kind == "kl":
        return ops.binary("mul", ops.const(q), ops.rowwise("softmax", a)) if shape else a
    powers = ops.reduce("sum", ops.binary("pow", ops.unary("abs", a), ops.const(q)))
    zero = ops.binary("eq", powers, ops.const(0.0))
    safe = ops.binary("pow", ops.where(zero, ops.const(1.0), powers), ops.const((2.0 - q) / q))
    return ops.binary("mul", ops.where(zero, ops.const(0.0), safe), a)


def shaped(x: Node, like: Node, clock: str = "each_tick") -> Node:
    """A recall's value with a token axis, where the memory's function has no key to bring one."""
    if like.type.clock and not x.type.clock:
        return make("each_tick", (x,), x.type.with_(clock="T", batch=True), one=clock == "final")
    return x


def is_loop(n: Node) -> bool:
    return n.op in LOOP or n.op == "last_learns"


def frontier(results: Iterable[Node], cached: frozenset[str]) -> list[Node]:
    """The recalls that a level's result and the pairs of its caches are made of: what its loop must give back, in
    order. cached: its caches."""
    found: list[Node] = []
    seen: set[Node] = set()
    stack = list(reversed(list(results)))
    while stack:
        n = stack.pop()
        if n in seen:
            continue
        seen.add(n)
        if n.op == "recall" and n["memory"] not in cached:
            found.append(n)
        else:
            stack.extend(reversed(n.args))
    return found


def looped_nodes(roots: Iterable[Node]) -> set[Node]:
    """The nodes below the roots that change from piece to piece with the state."""
    loop: set[Node] = set()
    for n in walk(*roots):
        if is_loop(n) or any(a in loop for a in n.args):
            loop.add(n)
    return loop


__all__ = ["LOOP", "Nodes", "frontier", "is_loop", "keeps_anchor", "looped_nodes", "per_tick", "state", "state_tensors"]
