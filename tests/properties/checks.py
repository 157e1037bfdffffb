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
from nestflow.bundle.module import Module
from nestflow.bundle.source import load_source
from nestflow.bundle.state import State
from nestflow.emit.model import emit_model
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

    def reference(self) -> Reference:
        return self.bundle.reference()

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
    def output(self) -> Tensor:
        return self.module(**self.inputs)

    @cached_property
    def full(self) -> tuple[Tensor, State]:
        with torch.no_grad():
            return self.module.run(None, **self.inputs)

    @cached_property
    def gradients(self) -> Tensors:
        return gradients(self.output, self.leaves)

    def part(self, low: int, high: int) -> Tensors:
        return {n: x[:, low:high] for n, x in self.inputs.items()}

    def pieces(self) -> Iterator[tuple[int, int]]:
        return zip((0, *self.spec.cuts), (*self.spec.cuts, self.spec.ticks), strict=True)


def same_state(case: Case, got: Mapping[str, Tensor], want: Mapping[str, Tensor], tolerance: float) -> None:
    """Where a chunk ends here the anchor is not compared: the next tick takes it anew. Of a cache the pairs that both
    kept are: which of those that nobody sees any more are dropped is no part of the meaning."""
    assert got.keys() == want.keys()
    memories = {f"{i.path}.{m.name}.": m for i in case.bundle.graph.root.walk() for m in i.memories}
    for path, x in got.items():
        y = want[path]
        m = next((m for prefix, m in memories.items() if path.startswith(prefix)), None)
        if m is not None and m.cache is not None:
            kept = 0 if m.cache.sink else min(x.shape[-2], y.shape[-2])
            x, y = x[..., x.shape[-2] - kept :, :], y[..., y.shape[-2] - kept :, :]
        elif m is not None and path.endswith("@chunk") and case.spec.ticks % m.chunk == 0:
            continue
        close(x, y, tolerance, f"state {path}")


def compiled_is_interpreted(case: Case) -> None:
    """Output, gradients in inputs and weights, state after the last tick."""
    reference: Reference = case.reference()
    want = reference(**case.inputs)
    close(case.output, want, FORWARD, "output")
    expected = gradients(want, case.leaves)
    for name, g in case.gradients.items():
        close(g, expected[name], BACKWARD, f"gradient {name}")
    with torch.no_grad():
        _, state = reference.run(None, case.inputs)
    state.pop("@t")
    same_state(case, case.full[1].tensors, state, FORWARD)


def splits_are_the_whole(case: Case) -> None:
    y, after = case.full
    state: State | None = None
    outs = []
    with torch.no_grad():
        for low, high in case.pieces():
            out, state = case.module.run(state, **case.part(low, high))
            outs.append(out)
    close(torch.cat(outs, 1), y, FORWARD, f"output cut at {case.spec.cuts}")
    assert state is not None
    same_state(case, state.tensors, after.tensors, FORWARD)


def interpreter_goes_on(case: Case) -> None:
    """The state that the compiled module leaves is one the interpreter can continue."""
    sinks = any(m.cache is not None and m.cache.sink for i in case.bundle.graph.root.walk() for m in i.memories)
    if sinks or not case.spec.cuts:  # where sinks lie in the state is not the same in both
        return
    cut, y = case.spec.cuts[0], case.full[0]
    with torch.no_grad():
        _, state = case.module.run(None, **case.part(0, cut))
        start = {**state.tensors, "@t": torch.full((case.spec.batch,), cut)}
        rest, _ = case.reference().run(start, case.part(cut, case.spec.ticks))
    close(rest, y[:, cut:], FORWARD, f"the interpreter from tick {cut} on")


def rows_do_not_meet(case: Case) -> None:
    for i in range(case.spec.batch):
        with torch.no_grad():
            alone = case.module(**{n: x[i : i + 1] for n, x in case.inputs.items()})
        close(alone, case.full[0][i : i + 1], FORWARD, f"row {i} alone")


def outputs_do_not_look_ahead(case: Case) -> None:
    """All ticks from one on are changed; what comes before stays to the last bit."""
    t = case.spec.cuts[-1] if case.spec.cuts else case.spec.ticks - 1
    changed = {}
    for n, x in case.inputs.items():
        later = (x[:, t:] + 1) % 7 if case.spec.tokens else x[:, t:] * -0.7 + 0.3
        changed[n] = torch.cat([x[:, :t], later], 1).detach()
    with torch.no_grad():
        y = case.module(**changed)
    assert torch.equal(y[:, :t], case.full[0][:, :t]), f"tick {t} reaches back"


def states_change_at_their_ticks(case: Case) -> None:
    """A memory's tensors and its rule's at multiples of `every` and at no other tick, its anchors where chunks meet."""
    clocks = {f"{i.path}.{m.name}.": m for i in case.bundle.graph.root.walk() for m in i.memories if m.cache is None}
    roles = {s.path: s.role for i in case.bundle.graph.root.walk() for s in state_slots(i)}
    state = case.module.initial_state(case.spec.batch)
    with torch.no_grad():
        for t in range(1, case.spec.ticks + 1):
            before = state.tensors
            _, state = case.module.run(state, **case.part(t - 1, t))
            for prefix, m in clocks.items():
                for path, new in state.tensors.items():
                    role = roles[path]
                    due = t % m.every == 0 if role in ("memory", "rule") else t % m.chunk == 0 or (t - 1) % m.chunk == 0
                    due = due or bool(m.reset and (t - 1) % m.reset == 0) or m.reset_where is not None
                    if path.startswith(prefix) and role in ("memory", "rule", "anchor") and not due:
                        assert torch.equal(new, before[path]), f"{path} changed at tick {t}"


def patterns_agree(case: Case) -> None:
    """However a memory is lowered, the numbers are those of the scan; gradients too."""
    plan = lower(case.bundle.graph, {n: PATTERNS[n] for n in ("cache", "scan")})
    scan = Module(case.bundle.graph, load_source(emit_model(case.bundle.graph, plan), "scan"), dtype=torch.float64)
    scan.load_state_dict(case.module.state_dict())
    y = scan(**case.inputs)
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
    """A renamed level: other keys, the same numbers."""
    pattern = re.compile(rf"\b({'|'.join(case.spec.levels)})\b")
    other = nestflow.compile(pattern.sub(r"\1_renamed", case.spec.text), dtype=torch.float64)
    renamed = {pattern.sub(r"\1_renamed", n): w for n, w in case.module.state_dict().items()}
    assert renamed.keys() == other.module.state_dict().keys()
    other.module.load_state_dict(renamed)
    with torch.no_grad():
        y, state = other.module.run(None, **case.inputs)
    assert torch.equal(y, case.full[0])
    assert {pattern.sub(r"\1_renamed", p) for p in case.full[1].tensors} == set(state.tensors)


PROPERTIES = (
    compiled_is_interpreted,
    splits_are_the_whole,
    interpreter_goes_on,
    rows_do_not_meet,
    outputs_do_not_look_ahead,
    states_change_at_their_ticks,
    patterns_agree,
    front_ends_agree,
    names_do_not_matter,
)
