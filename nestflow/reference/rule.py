"""An update rule on plain tensors, statement by statement: language.md §2 (optimisers) and §3.4 (learn).

The same program serves a memory on the token clock (tensors `[B, H, *shape]`: one copy per row and head) and slow
weights on the step clock (`plain`: tensors as they are in a state dict).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from nestflow.diagnostics.core import fail
from nestflow.graph.globs import matches
from nestflow.ir.forms import facts_of, holds
from nestflow.ir.node import Node, walk
from nestflow.ir.rule import DgdStep, Let, Rule, SetWeight, SlotUpdate, Statement
from nestflow.reference.values import align, apply, features, leaf

CONTEXT = frozenset(
    (
        "slot",
        "weight",
        "theta",
        "position",
        "head",
        "training",
        "call",
        "recall",
        "short_conv",
        "previous",
        "window",
        "rope",
        "uniform",
        "noise",
        "dropout",
    )
)


@dataclass(frozen=True)
class Count:
    """Which update of a memory this is, this one included, of how many ticks, at which tick: see Update."""

    updates: Tensor
    n_ticks: Tensor
    ticks: Tensor


@dataclass
class Weight:
    """One tensor w [B, H, *shape] in the course of an update. gram: K = Σ |weight| k kᵀ over its inputs, for dgd.
    stop: its steps are constants for slower levels. count: where its memory counts for itself (it starts anew where
    others do not, or has rounds)."""

    path: str
    w: Tensor
    g: Tensor
    old: dict[str, Tensor]
    w0: Tensor
    w_chunk: Tensor
    gram: Tensor | None = None
    retain: Callable[[Tensor], Tensor] = lambda w: w
    new: dict[str, Tensor] = field(default_factory=dict)
    named: dict[str, Tensor] = field(default_factory=dict)
    retained: bool = False
    stop: bool = False
    count: Count | None = None
    curvature: Tensor | None = None


@dataclass
class Update:
    """One update of all the weights that learn by this rule at this tick. updates: [B or 1, 1], this one included."""

    rule: Rule
    weights: list[Weight]
    updates: Tensor
    n_ticks: Tensor | int = 1
    ticks: Tensor | float | None = None
    every: int = 1
    run_length: float | None = None
    context: Callable[[Node], Tensor] | None = None
    per_copy: bool = True
    retain: Node | None = None  # of slow weights: what each is multiplied by, from what it is before the update
    memo: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def run(self) -> None:
        """Top to bottom: `self.weights` hold the new w and slots afterwards."""
        # the raw gradient, then what the stages before the rule (`clip_norm`) make of it
        gradients = [self.value(self.rule.gradient, w) for w in self.weights]
        for w, g in zip(self.weights, gradients):
            w.g = g.expand_as(w.w)
        if self.retain is not None:
            for w in self.weights:
                w.retain = partial(times, self.value(self.retain, w))
        for statement in self.rule.program:
            self.memo.clear()
            results = [self.statement(statement, w) for w in self.weights]  # all read the state above this statement
            for commit in results:
                commit()
        for w in self.weights:
            if not w.retained:
                w.w = w.retain(w.w)
            w.new = {**w.old, **w.new}
        if self.rule.project is not None:  # A_t = project(retain(A_{t−1}) + Δ), each tensor on its own
            self.memo.clear()
            projected = [self.value(self.rule.project, w) for w in self.weights]
            for w, a in zip(self.weights, projected):
                w.w = a.expand_as(w.w)

    def statement(self, s: Statement, w: Weight) -> Callable[[], None]:
        """What the statement will change in w."""
        if not holds(s.where, tuple(w.w.shape[2:])):
            return lambda: None
        if isinstance(s, SlotUpdate):
            new = self.slot(s, w)
            return lambda: w.new.update(new)
        if isinstance(s, Let):
            value = self.value(s.value, w)
            return lambda: w.named.update({s.name: value})
        value = self.dgd(s, w) if isinstance(s, DgdStep) else self.value(s.value, w)
        if value.ndim == w.w.ndim + 1 and value.shape[-1] == 1:
            value = value.squeeze(-1)
        base = w.w if w.retained else w.retain(w.w)
        step = value - base if isinstance(s, SetWeight) else value  # `set e`: the step is e − retain(w)
        # §3.9: under `gradient stop` the steps are constants, and only init and retain carry slower gradients
        after = value if isinstance(s, SetWeight) and not w.stop else base + (step.detach() if w.stop else step)

        def commit() -> None:
            w.w, w.retained = after.expand_as(w.w), True

        return commit

    def slot(self, s: SlotUpdate, w: Weight) -> dict[str, Tensor]:
        """The new state of a memory of the rule; with a period, only when `every` divides the updates."""
        kept: dict[str, Tensor] = {}
        if s.pending is not None and s.pending_value is not None:
            kept[s.pending] = w.old[s.pending] + self.value(s.pending_value, w)
            w.new[s.pending] = kept[s.pending]
        new = self.value(s.value, w)
        new = new.reshape(new.shape[:2]) if w.old[s.slot].ndim == 2 else new  # one number for all tensors
        new = align(new, w.old[s.slot])[0].expand_as(w.old[s.slot])
        if s.every > 1:
            due = (w.count or self).updates % s.every == 0
            new = pick(due, new, w.old[s.slot])
            kept = {k: pick(due, torch.zeros_like(v), v) for k, v in kept.items()}
        products = {k: v for k, v in w.new.items() if k.endswith("@retained")}
        return {s.slot: new, **kept, **products}

    def dgd(self, s: DgdStep, w: Weight) -> Tensor:
        """−η(A K + g), η = lr/(1 + lr tr K), or lr if not exact; −lr g for a tensor without an input (§3.4)."""
        lr = self.value(s.lr, w)
        if w.gram is None or not matches(s.only, w.path):
            return times(-lr, w.g)
        gram = w.gram if s.scale is None else times(self.value(s.scale, w), w.gram)
        if s.exact:
            lr, trace = align(lr, gram.diagonal(dim1=-2, dim2=-1).sum(-1))
            lr = lr / (1 + lr * trace)
        return times(-lr, w.w @ gram + w.g)

    # expressions -----------------------------------------------------------------------------------

    def value(self, node: Node, w: Weight) -> Tensor:
        """The value of an expression of the rule for this weight, once per statement."""
        key = (id(node), id(w))
        if key not in self.memo:
            self.memo[key] = self.compute(node, w)
        return self.memo[key]

    def compute(self, node: Node, w: Weight) -> Tensor:
        op, like = node.op, w.w
        count = w.count or self
        own = {"g": w.g, "w": w.w, "w0": w.w0, "w_chunk": w.w_chunk, "updates": count.updates}
        if op in own:
            return own[op]
        if op == "curvature":
            if w.curvature is None:
                message = "the interpreter does not estimate `curvature`, which this rule reads"
                raise fail("NF490", message, node.span, "`bundle.step` does, and `module` and `optimizer` do")
            return w.curvature
        if op == "gram":
            width = like.shape[3:].numel()
            return like.new_zeros(1, 1, width, width) if w.gram is None else w.gram
        if op == "named":
            return w.named[node["name"]]
        if op == "slot_old":
            return w.old[node["name"]]
        if op == "slot_new":
            return w.new[node["name"]]
        if op == "hyper":
            return self.value(self.rule.argument(node["name"]), w)
        if op == "each":
            at = next(i for i, entry in enumerate(node["names"]) if w.path == entry or w.path.startswith(f"{entry}."))
            return self.value(node.args[at], w)
        if op == "n_ticks":
            n = torch.as_tensor(count.n_ticks, device=like.device)
            return n.reshape(-1, n.shape[1] if n.ndim else 1)
        if op == "fact":
            return torch.full((1, 1), facts_of(tuple(like.shape[2:]))[node["name"]], device=like.device)
        if op == "where" and all(n.op in ("const", "fact") for n in walk(node.args[0]) if not n.args):
            taken = 1 if bool(self.value(node.args[0], w)) else 2  # what w is not, is not asked
            return self.value(node.args[taken], w)
        if op == "as_matrix":
            x = self.value(node.args[0], w)
            return x.reshape(*x.shape[:2], like.shape[2:3].numel(), like.shape[3:].numel())
        if op == "like_w":
            x = self.value(node.args[0], w)
            return x.reshape(*x.shape[:2], *like.shape[2:])
        if op == "draw":
            return self.draw(node, w)
        if op == "eye_of":
            return torch.eye(int(self.value(node.args[0], w)), dtype=like.dtype, device=like.device)[None, None]
        if op in ("norm_all", "total"):
            return self.over_all(op, [self.value(node.args[0], other) for other in self.weights])
        if op == "norm_w":
            x = self.value(node.args[0], w)
            return torch.linalg.vector_norm(x, dim=features(x)) if x.ndim > 2 else x.abs()
        if op == "norm_rows":
            x = self.value(node.args[0], w)
            return torch.linalg.vector_norm(x, dim=-1, keepdim=True) if x.ndim > 2 else x.abs()
        if op == "debias":
            return self.debias(node, w)
        if op == "schedule":
            return schedule(node, count.ticks, self.every, self.run_length).to(like).reshape(-1, 1)
        if op in CONTEXT:
            if self.context is None:
                raise LookupError(f"this rule reads `{op}` of its level, and there is none")
            return self.context(node)
        if op == "sqrt" and any(
            n.type.like for n in walk(node)
        ):  # √v of an Adam, whose derivative is 0 where g has been 0 all along
            x = self.value(node.args[0], w)
            return torch.where(x == 0, 0.0, torch.where(x == 0, 1.0, x).sqrt())
        known = leaf(node, like.dtype, like.device)
        return known if known is not None else apply(node, [self.value(a, w) for a in node.args], like.dtype)

    def draw(self, node: Node, w: Weight) -> Tensor:
        """The start of a memory by its path alone, drawn in float32: [B, H, *shape]."""
        slot = next(s for s in self.rule.slots if s.name == node["slot"])
        shape = slot.shape(tuple(w.w.shape[2:])) or ()
        digest = hashlib.sha256(f"{w.path}.{node['slot']}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        full = (*w.w.shape[:2], *shape)
        if node["kind"] == "normal":
            x = torch.randn(full, generator=generator) * node["a"]
        else:
            x = torch.rand(full, generator=generator) * (node["b"] - node["a"]) + node["a"]
        return x.to(w.w)

    def over_all(self, op: str, xs: list[Tensor]) -> Tensor:
        """‖·‖ or Σ over all tensors that learn by this update: one copy at a time, or (slow weights) heads and all."""
        first = 2 if self.per_copy else 0
        flat = torch.cat([x.reshape(*x.shape[:first], -1) for x in xs], -1)
        total = torch.linalg.vector_norm(flat, dim=-1) if op == "norm_all" else flat.sum(-1)
        return total if self.per_copy else total.reshape(1, 1)

    def debias(self, node: Node, w: Weight) -> Tensor:
        """m / (1 − the product of its retains): a constant retain r counts as rᵗ, t the updates of m."""
        slot = node["slot"]
        every = next((s.every for s in self.rule.program if isinstance(s, SlotUpdate) and s.slot == slot), 1)
        updates = (w.count or self).updates
        x, r = self.value(node.args[0], w), self.rule.expand(node.args[1])  # expand: a hyper is a constant too
        if r.op == "const":
            product = (float(r.value) ** (updates // every).clamp(min=1).double()).to(x.dtype)
        else:
            kept = f"{slot}@retained"
            before = w.old[kept]
            after = before * self.value(node.args[1], w).reshape(x.shape[0], -1)
            product = pick(updates % every == 0, after, before)
            w.new[kept] = product
        return times(1 / (1 - product), x)


def pick(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """new in the copies (rows) where the mask [B or 1, 1] holds, old elsewhere."""
    m, new, old = align(mask, new, old)
    return torch.where(m, new, old)


def times(number: Tensor, x: Tensor) -> Tensor:
    """A gate or rate times a tensor of the shape of w: a number, a vector on the key axis, or elementwise."""
    a, b = align(number.reshape(number.shape[:2]) if number.shape[2:].numel() == 1 else number, x)
    return a * b


def schedule(node: Node, ticks: Tensor | float | None, every: int, run_length: float | None) -> Tensor:
    """A rate by ticks s of the level's clock, from 1 (vocabulary: cosine, linear_decay, wsd)."""
    if ticks is None:
        raise LookupError("a schedule counts ticks of a clock, and none was given")
    s, peak = torch.as_tensor(ticks, dtype=torch.float64), float(node["peak"])
    warmup = float(node["warmup"] or 0)
    if node["kind"] == "wsd":
        fallen = (s - warmup - node["stable"]) / node["decay"]
        after = peak * (1 - fallen.clamp(0, 1))
    else:
        total = node["total"] if node["total"] is not None else run_length
        if total is None:
            raise fail("NF540", "the length of the run is not known here", node.span, "write `total = N`")
        done = ((s - warmup) / max(total + every - warmup, 1)).clamp(0, 1)
        shape = (1 + torch.cos(torch.pi * done)) / 2 if node["kind"] == "cosine" else 1 - done
        after = node["floor"] + (peak - node["floor"]) * shape
    return torch.where(s <= warmup, peak * s / max(warmup, 1e-300), after)


def start_slots(rule: Rule, path: str, w: Tensor) -> dict[str, Tensor]:
    """The memories of the rule for a tensor w [B, H, *shape] that is at its start."""
    one = Weight(path, w, torch.zeros_like(w), {}, w, w)
    run = Update(rule, [one], torch.zeros(1, 1, dtype=torch.int64, device=w.device))
    shapes = {s.name: s.shape(tuple(w.shape[2:])) for s in rule.slots}
    slots = {
        s.name: align(run.value(s.init, one).to(w.dtype), w.new_zeros(1, 1, *shape))[0].expand(*w.shape[:2], *shape)
        for s in rule.slots
        if (shape := shapes[s.name]) is not None
    }
    for node in walk(*rule.nodes()):  # the product of retains that vary, for debias
        if node.op == "debias" and rule.expand(node.args[1]).op != "const":
            slots[f"{node['slot']}@retained"] = w.new_ones(w.shape[:2])
    return slots
