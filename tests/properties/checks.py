"""What must hold for every spec: each function takes a Case and raises AssertionError where its property fails."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

import nestflow
from nestflow.bundle.bundle import Bundle
from nestflow.bundle.lasting import kept_by
from nestflow.bundle.module import Module
from nestflow.bundle.source import load_source
from nestflow.bundle.state import State
from nestflow.emit.model import emit_model
from nestflow.graph.contents import draws_at_random
from nestflow.graph.model import Memory
from nestflow.graph.state import state_slots
from nestflow.language.nl import parse_nl
from nestflow.language.printer import print_nl, print_yaml
from nestflow.language.yaml import parse_yaml
from nestflow.lowering.patterns import PATTERNS
from nestflow.lowering.plan import lower
from nestflow.reference import Reference
from tests.properties.specs import Spec

Tensors = dict[str, Tensor]
FORWARD, BACKWARD = 1e-9, 1e-8
COUNTERS = ("@t", "@age")  # of the interpreter; the module keeps them beside the state


def error(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the larger of 1 and the largest value; inf where not both are finite."""
    if a.shape != b.shape or not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        return float("inf")
    if not a.is_floating_point():
        return 0.0 if torch.equal(a, b) else float("inf")
    return ((a - b).abs().max() / b.abs().max().clamp(min=1)).item() if a.numel() else 0.0


def gradients(y: Tensor, leaves: Tensors) -> Tensors:
    """Of the product of y with a fixed random tensor."""
    probe = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    found = torch.autograd.grad((y * probe).sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def close(a: Tensor, b: Tensor, tolerance: float, what: str) -> None:
    found = error(a, b)
    assert found <= tolerance, f"{what}: {found:.2e} apart, {tolerance:.0e} allowed"


class Case:
    """A spec compiled in float64, its weights drawn anew, and inputs."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.bundle: Bundle = nestflow.compile(spec.text, dtype=torch.float64)
        self.generator = torch.Generator().manual_seed(spec.seed)
        with torch.no_grad():
            for w in self.bundle.module.weights.values():
                w.copy_(self.drawn(w))
        self.inputs = self.new_inputs()

    def drawn(self, w: Tensor) -> Tensor:
        """Matrices keep lengths, gains lie around 1."""
        x = torch.randn(w.shape, generator=self.generator, dtype=torch.float64)
        return x * w.shape[-1] ** -0.5 if w.ndim >= 2 else 0.6 + 0.3 * x

    def first(self, ticks: int) -> Case:
        """The same case on its first ticks alone: the same weights, the same bundle."""
        other = copy.copy(self)
        for name in [n for n, v in vars(type(self)).items() if isinstance(v, cached_property)]:
            other.__dict__.pop(name, None)
        cuts = {c for c in self.spec.cuts if c < ticks} | ({ticks // 2} if ticks > 1 else set())
        other.spec = replace(self.spec, ticks=ticks, cuts=tuple(sorted(cuts)))
        cut = {n: x[:, :ticks].detach() for n, x in self.inputs.items()}
        other.inputs = {n: x.requires_grad_(x.is_floating_point()) for n, x in cut.items()}
        return other

    def new_inputs(self) -> Tensors:
        s = self.spec
        if s.tokens:
            return {"tokens": torch.randint(0, 7, (s.batch, s.ticks), generator=self.generator)}
        x = torch.randn(s.batch, s.ticks, 5, generator=self.generator, dtype=torch.float64)
        return {"x": x.requires_grad_()}

    @property
    def module(self) -> Module:
        return self.bundle.module

    @property
    def leaves(self) -> Tensors:
        return {n: x for n, x in {**self.inputs, **self.module.weights}.items() if x.is_floating_point()}

    @cached_property
    def streams(self) -> bool:
        """Whether a call can go on from another one: not where a cache sees later ticks."""
        caches = [m.cache for m in self.memories.values() if m.cache is not None]
        return all(c.causal for c in caches)

    @cached_property
    def chance(self) -> bool:
        return draws_at_random(self.bundle.graph)

    @cached_property
    def memories(self) -> dict[str, Memory]:
        """By the beginning of their paths in the state."""
        return {f"{i.path}.{m.name}.": m for i in self.bundle.graph.root.walk() for m in i.memories}

    @cached_property
    def one_copy(self) -> bool:
        """Whether all rows write one memory, which lasts from call to call."""
        return any(s.per == "model" for s in self.bundle.graph.state)

    def begin(self, module: Module | None = None) -> Module:
        """The module as before its first call: what lasts is as new, and no pass of training was counted."""
        module = module or self.module
        module.train(self.spec.training)
        with torch.no_grad():
            for kept in module.kept.values():
                kept.zero_()
        vars(module)["_passes"] = 0
        return module

    def reference(self) -> Reference:
        """The interpreter as before its first call."""
        self.begin()
        found: Reference = self.bundle.reference()
        found.training = self.spec.training
        return found

    def call(self, module: Module | None = None, **inputs: Tensor) -> Tensor:
        """The output of a first call."""
        return self.begin(module)(**(inputs or self.inputs))

    def run(self, *pieces: Tensors) -> tuple[Tensor, State]:
        """The output of a stream that takes its input in pieces, and the state after the last one."""
        state, outs = None, []
        with torch.no_grad():
            for piece in pieces:
                self.begin() if state is None else self.again()
                y, state = self.module.run(state, **piece)
                outs.append(y)
        assert state is not None
        return torch.cat(outs, 1), state

    def again(self) -> None:
        """The call that follows belongs to the step of the one before."""
        vars(self.module)["_passes"] = 0

    @cached_property
    def output(self) -> Tensor:
        return self.call()

    @cached_property
    def full(self) -> tuple[Tensor, State]:
        return self.run(self.inputs)

    @cached_property
    def gradients(self) -> Tensors:
        return gradients(self.output, self.leaves)

    def part(self, low: int, high: int) -> Tensors:
        return {n: x[:, low:high] for n, x in self.inputs.items()}

    def pieces(self) -> Iterator[tuple[int, int]]:
        return zip((0, *self.spec.cuts), (*self.spec.cuts, self.spec.ticks), strict=True)


def same_state(case: Case, got: Mapping[str, Tensor], want: Mapping[str, Tensor], tolerance: float) -> None:
    """Where a chunk ends here the anchor is not compared: the next tick takes it anew (nor the one that a segment began
    with, which may have begun where a chunk did). Of a cache the pairs that both kept are: which of those that nobody
    sees any more are dropped is no part of the meaning."""
    assert got.keys() == want.keys()
    for path, x in got.items():
        y = want[path]
        m = next((m for prefix, m in case.memories.items() if path.startswith(prefix)), None)
        if m is not None and m.cache is not None:
            kept = 0 if m.cache.sink else min(x.shape[-2], y.shape[-2])
            x, y = x[..., x.shape[-2] - kept :, :], y[..., y.shape[-2] - kept :, :]
        ends = m is not None and case.spec.ticks % m.chunk == 0
        if path.endswith("@chunk@segment") or (path.endswith("@chunk") and ends):
            continue
        close(x, y, tolerance, f"state {path}")


def compiled_is_interpreted(case: Case) -> None:
    """Output, gradients in inputs and weights, state after the last tick."""
    want = case.reference()(**case.inputs)
    close(case.output, want, FORWARD, "output")
    expected = gradients(want, case.leaves)
    for name, g in case.gradients.items():
        close(g, expected[name], BACKWARD, f"gradient {name}")
    with torch.no_grad():
        _, state = case.reference().run(None, case.inputs)
    same_state(case, case.full[1].tensors, {p: x for p, x in state.items() if p not in COUNTERS}, FORWARD)


def objectives_agree(case: Case) -> None:
    """What levels on the step clock learn from, what instances publish among it, and its gradients."""
    for level in case.bundle.graph.step_levels:
        if level.objective is None:
            continue
        case.begin()
        got = case.module.losses(**case.inputs, training=case.spec.training)[level.name]
        want = case.reference().loss(level.objective, case.inputs)
        close(got, want, FORWARD, f"objective of {level.name}")
        leaves = case.leaves
        ones, others = (torch.autograd.grad(x, list(leaves.values()), allow_unused=True, materialize_grads=True)
                        for x in (got, want))  # fmt: skip
        for name, g, other in zip(leaves, ones, others, strict=True):
            close(g, other, BACKWARD, f"gradient {name} of the objective of {level.name}")


def splits_are_the_whole(case: Case) -> None:
    if not case.streams:
        return
    y, state = case.run(*(case.part(low, high) for low, high in case.pieces()))
    close(y, case.full[0], FORWARD, f"output cut at {case.spec.cuts}")
    same_state(case, state.tensors, case.full[1].tensors, FORWARD)


def interpreter_goes_on(case: Case) -> None:
    """The state that the compiled module leaves is one the interpreter can continue."""
    sinks = any(m.cache is not None and m.cache.sink for m in case.memories.values())
    if sinks or not case.spec.cuts or not case.streams:  # where sinks lie in the state is not the same in both
        return
    cut, y = case.spec.cuts[0], case.full[0]
    reference = case.reference()
    _, state = case.run(case.part(0, cut))
    reference.lasting = kept_by(case.module.kept)
    start = {**state.tensors, **{n: torch.full((case.spec.batch,), cut) for n in COUNTERS}}
    with torch.no_grad():
        rest, _ = reference.run(start, case.part(cut, case.spec.ticks))
    close(rest, y[:, cut:], FORWARD, f"the interpreter from tick {cut} on")


def sequences_begin_in_rows(case: Case) -> None:
    """In the first row a new sequence begins at a cut; the others go on. (One copy for all has its rows in step.)"""
    if not case.spec.cuts or not case.streams:
        return
    cut, rows = case.spec.cuts[0], range(case.spec.batch) if case.one_copy else [0]
    starts = torch.zeros(case.spec.batch, case.spec.ticks, dtype=torch.bool)
    starts[list(rows), cut] = True
    with torch.no_grad():
        want, _ = case.reference().run(None, case.inputs, starts)
        first, state = case.run(case.part(0, cut))
        case.again()
        rest, _ = case.module.run(case.module.begin_sequence(state, rows), **case.part(cut, case.spec.ticks))
    close(torch.cat([first, rest], 1), want, FORWARD, f"a sequence that begins at tick {cut + 1}")


def rows_do_not_meet(case: Case) -> None:
    if case.one_copy:
        return
    for i in range(1 if case.chance else case.spec.batch):  # draws are those of the row
        with torch.no_grad():
            alone = case.call(**{n: x[i : i + 1] for n, x in case.inputs.items()})
        close(alone, case.full[0][i : i + 1], FORWARD, f"row {i} alone")


def outputs_do_not_look_ahead(case: Case) -> None:
    """All ticks from one on are changed; what comes before stays to the last bit."""
    if not case.streams:
        return
    t = case.spec.cuts[-1] if case.spec.cuts else case.spec.ticks - 1
    changed = {}
    for n, x in case.inputs.items():
        later = (x[:, t:] + 1) % 7 if case.spec.tokens else x[:, t:] * -0.7 + 0.3
        changed[n] = torch.cat([x[:, :t], later], 1).detach()
    with torch.no_grad():
        y = case.call(**changed)
    assert torch.equal(y[:, :t], case.full[0][:, :t]), f"tick {t} reaches back"


def states_change_at_their_ticks(case: Case) -> None:
    """A memory's tensors and its rule's at multiples of `every` and at no other tick, its anchors where chunks meet."""
    if not case.streams:
        return
    clocks = {prefix: m for prefix, m in case.memories.items() if m.cache is None}
    roles = {s.path: s.role for i in case.bundle.graph.root.walk() for s in state_slots(i)}
    case.begin()
    state = case.module.initial_state(case.spec.batch)
    with torch.no_grad():
        for t in range(1, case.spec.ticks + 1):
            before = state.tensors
            case.again()
            _, state = case.module.run(state, **case.part(t - 1, t))
            for prefix, m in clocks.items():
                for path, new in state.tensors.items():
                    role = roles.get(path, "")
                    due = t % m.every == 0 if role in ("memory", "rule") else t % m.chunk == 0 or (t - 1) % m.chunk == 0
                    due = due or bool(m.reset and (t - 1) % m.reset == 0) or m.reset_where is not None
                    if path.startswith(prefix) and role in ("memory", "rule", "anchor") and not due:
                        assert torch.equal(new, before[path]), f"{path} changed at tick {t}"


def patterns_agree(case: Case) -> None:
    """However a memory is lowered, the numbers are those of the scan; gradients too."""
    plan = lower(case.bundle.graph, {n: PATTERNS[n] for n in ("cache", "scan")})
    program = load_source(emit_model(case.bundle.graph, plan), "scan")
    scan = Module(case.bundle.graph, program, seed=case.bundle.seed, dtype=torch.float64)
    scan.load_state_dict(case.module.state_dict())
    y = case.call(scan)
    close(y, case.output, FORWARD, "output of the scan")
    inputs = {n: x for n, x in case.inputs.items() if x.is_floating_point()}
    for name, g in gradients(y, {**inputs, **scan.weights}).items():
        close(g, case.gradients[name], BACKWARD, f"gradient {name} of the scan")


def front_ends_agree(case: Case) -> None:
    """`.nl` and YAML are read as one tree, and compile to one program."""
    tree = parse_nl(case.spec.text, "spec.nl")
    text, yaml = print_nl(tree), print_yaml(tree)
    assert parse_nl(text, "spec.nl") == tree
    assert parse_yaml(yaml, "spec.yaml") == tree
    assert code(nestflow.compile(yaml).source) == code(case.bundle.source)
    assert code(nestflow.compile(text).source) == code(case.bundle.source)


def code(source: str) -> list[str]:
    """Lines without comments: these name places in the text."""
    lines = [re.sub(r"\s*#.*", "", line) for line in source.splitlines()]
    return [line for line in lines if line and not line.lstrip().startswith('"""')]


def names_do_not_matter(case: Case) -> None:
    """A renamed level: other keys, the same numbers. (Draws are from the path.)"""
    if case.chance:
        return
    pattern = re.compile(rf"\b({'|'.join(case.spec.levels)})\b")
    other = nestflow.compile(pattern.sub(r"\1_renamed", case.spec.text), dtype=torch.float64)
    renamed = {pattern.sub(r"\1_renamed", n): w for n, w in case.module.state_dict().items()}
    assert renamed.keys() == other.module.state_dict().keys()
    other.module.load_state_dict(renamed)
    with torch.no_grad():
        y, state = case.begin(other.module).run(None, **case.inputs)
    assert torch.equal(y, case.full[0])
    assert {pattern.sub(r"\1_renamed", p) for p in case.full[1].tensors} == set(state.tensors)


PROPERTIES = (
    compiled_is_interpreted,
    objectives_agree,
    splits_are_the_whole,
    interpreter_goes_on,
    sequences_begin_in_rows,
    rows_do_not_meet,
    outputs_do_not_look_ahead,
    states_change_at_their_ticks,
    patterns_agree,
    front_ends_agree,
    names_do_not_matter,
)
