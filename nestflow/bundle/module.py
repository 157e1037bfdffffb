"""The `nn.Module` of a compiled spec: weights by path, inputs by name, the state of a stream in and out."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from nestflow.bundle.facts import how, looks_ahead
from nestflow.bundle.inputs import by_name, checked, unequal
from nestflow.bundle.lasting import beside_them, enter, lasting_slots, leave, parameters
from nestflow.bundle.long import block_by_block
from nestflow.bundle.networks import place_of
from nestflow.bundle.origin import revive_module
from nestflow.bundle.state import Group, State
from nestflow.bundle.token import fast, one_token, undisturbed
from nestflow.bundle.unread import computed
from nestflow.diagnostics.core import fail
from nestflow.emit.model import objective_name
from nestflow.graph.contents import draws_at_random
from nestflow.graph.model import LevelGraph, StateSlot, StepLevel, WeightSpec
from nestflow.graph.slow.state import beginning
from nestflow.ops.runtime import Context
from nestflow.ops.weights import Branch, draw, plant
from nestflow.ops.workers import UnequalPartsError


class Module(Branch):
    """Computes the spec's `output`. Keys of the state dict are the weights' paths: `model.block.0.rmsnorm.weight`.

    Called with the spec's inputs by name, batch first (a single input also by position); every call opens fresh
    streams. `run` takes and gives a `State`. Raises NestflowError NF501 to NF507 for inputs that do not fit.
    """

    def __init__(
        self,
        graph: LevelGraph,
        program: ModuleType,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        networks: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.__dict__["_networks"] = networks = dict(networks or {})
        for name, net in networks.items():
            self._modules[name] = net
        frozen = {w for level in graph.step_levels if level.rule is None for w in level.weights}
        places: list[tuple[str, nn.Module, str]] = []
        for spec in graph.weights:
            if spec.role == "network":  # it lies in the network that the caller gave, and starts as it is there
                name, _, path = spec.path.partition(".")
                places.append((spec.path, *place_of(networks[name], path)))
                continue
            init = spec.init
            try:
                start = draw(spec.path, spec.full_shape, init.kind, init.a, init.b, init.maps, seed)
                start = start.to(device=device, dtype=dtype)
            except (MemoryError, RuntimeError) as e:
                raise _no_room(graph, spec, e) from None
            weight = nn.Parameter(start, requires_grad=spec.path not in frozen)
            places.append((spec.path, *plant(self, spec.path, weight)))
        kept: list[tuple[str, nn.Module, str]] = []
        for spec in graph.kept:  # tensors of levels that are no slow weights
            start = draw(spec.path, spec.full_shape, spec.init.kind, spec.init.a, spec.init.b, (), seed)
            own = nn.Parameter(start.to(device=device, dtype=dtype), requires_grad=False)
            kept.append((spec.path, *plant(self, spec.path, own)))
        kept += [(path, *plant(self, path, own)) for path, own in parameters(graph, dtype, device)]
        self.__dict__["_kept"] = kept
        self.__dict__["_lasting"] = lasting_slots(graph)
        # a list hides the modules from nn.Module's own tables: they are in the tree already
        self.__dict__["_places"] = places
        self.__dict__["_graph"] = graph
        self.__dict__["_program"] = program
        self.__dict__["_ahead"] = looks_ahead(graph)
        self.__dict__["_seed"] = seed
        self.__dict__["_passes"] = 0
        self.__dict__["_token"] = None  # the code of one token, once it was asked for
        self.__dict__["_draws_at_random"] = draws_at_random(graph)
        self.__dict__["_fallback"] = (dtype, torch.device(device or "cpu"))
        for level in beginning(graph.step_levels):
            self.restart(level)
        if networks and not any(net.training for net in networks.values()):
            self.train(False)  # networks that come in eval mode stay in it

    @property
    def kept(self) -> dict[str, nn.Parameter]:
        """Tensors of levels without slots that are no slow weights (`like(outer)`, `scalar`), by path."""
        found = {}
        for path, module, leaf in self.__dict__["_kept"]:
            found[path] = module._parameters[leaf]
        return found

    @torch.no_grad()
    def restart(self, level: StepLevel) -> None:
        """Set a level's tensors to where they start, if it says where."""
        all_ = {**self.weights, **self.kept}
        starts = dict(level.start)
        fresh = {w.path: w for w in level.state}
        for path in level.weights if level.inner is None else ():
            if path in starts:
                all_[path].copy_(all_[starts[path]])
            elif path in fresh:
                init = fresh[path].init
                all_[path].fill_({"zeros": 0.0, "ones": 1.0}.get(init.kind, init.a))

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The slow weights by path, in order of creation."""
        found = {}
        for path, module, leaf in self.__dict__["_places"]:
            found[path] = module._parameters[leaf]
        return found

    def _own(self) -> set[str]:
        """Paths of the weights that the spec made; the others are parameters of the caller's networks."""
        return {w.path for w in self.__dict__["_graph"].weights if w.role != "network"}

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(path, weight) of every slow weight, in order of creation."""
        yield from self.weights.items()

    @property
    def draws(self) -> int:
        """The step that `dropout`, `noise` and `bernoulli` draw by: those of the bundle's optimizer; where it has none,
        the passes of training so far."""
        steps = self.__dict__.get("_steps")
        return self.__dict__["_passes"] if steps is None else steps()

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights (of the inputs, where there are none)."""
        return self._kind()[0]

    @property
    def device(self) -> torch.device:
        return self._kind()[1]

    def _kind(self) -> tuple[torch.dtype, torch.device]:
        for _, module, leaf in self.__dict__["_places"]:
            weight = module._parameters[leaf]
            if weight.is_floating_point():
                return weight.dtype, weight.device
        return self.__dict__["_fallback"]

    def _apply(
        self, fn: Any, recurse: bool = True
    ) -> Module:  # a module without weights follows .to() and .double() too
        super()._apply(fn, recurse)
        dtype, device = self.__dict__["_fallback"]
        moved = fn(torch.empty(0, dtype=dtype, device=device))
        self.__dict__["_fallback"] = (moved.dtype, moved.device)
        follow = self.__dict__.get("_on_move")
        if follow is not None:
            follow()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Module:
        networks = copy.deepcopy(self.__dict__["_networks"], memo)
        seed = self.__dict__["_seed"]
        made = Module(self.__dict__["_graph"], self.__dict__["_program"], seed, *self._kind(), networks)
        made.__dict__["_passes"] = self.draws
        origin = self.__dict__.get("_origin")
        made.__dict__["_origin"] = origin and (*origin[:4], networks, *origin[5:])
        memo[id(self)] = made
        made.load_state_dict(self.state_dict())
        for path, weight in self.weights.items():
            made.weights[path].requires_grad_(weight.requires_grad)
            memo[id(weight)] = made.weights[path]
        return made.train(self.training)

    def __reduce__(self) -> Any:
        """Pickles as its spec, which is compiled again where it is unpickled, and its weights."""
        own = self._own()  # networks carry theirs themselves
        mine = {p: w for p, w in self.weights.items() if p in own} | self.kept
        weights = {p: (w.detach(), w.requires_grad) for p, w in mine.items()}
        state = {"weights": weights, "training": self.training, "kind": self.__dict__["_fallback"], "draws": self.draws}
        return revive_module, (self.__dict__["_origin"],), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for path, module, leaf in (*self.__dict__["_places"], *self.__dict__["_kept"]):
            if path not in state["weights"]:
                continue
            weight, learns = state["weights"][path]
            module._parameters[leaf] = nn.Parameter(weight, requires_grad=learns)
        self.__dict__["_fallback"] = state["kind"]
        self.__dict__["_passes"] = state["draws"]
        self.train(state["training"])

    def extra_repr(self) -> str:
        return f"{self.__dict__['_graph'].name}: {sum(w.numel() for w in self.weights.values()):,} weights"

    # ---- calls

    def bind(self, args: tuple[Any, ...], inputs: Mapping[str, Any], all: bool = False) -> dict[str, Tensor]:
        """The inputs as checked tensors, in the order of the spec. all: also those that the output does not read."""
        graph: LevelGraph = self.__dict__["_graph"]
        values = by_name(graph.inputs, args, inputs, None if all else graph.needed)
        if torch.compiler.is_compiling():  # traced code takes tensors as they are: the checks read values
            return values
        return checked(graph.inputs, values, *self._kind())

    def forward(self, *args: Any, **inputs: Any) -> Any:
        return self._fresh("forward", self.bind(args, inputs), None)

    def losses(self, *args: Any, training: bool | None = None, **inputs: Any) -> dict[str, Tensor]:
        """The objectives of the levels that learn on the step clock, by the name of the first level that has each."""
        return self._fresh("losses", self.bind(args, inputs, all=True), training)

    def metrics(self, *args: Any, **inputs: Any) -> dict[str, Any]:
        """The losses, and under `accuracy of NAME` the hits and the number of the classes of each cross entropy."""
        entry = "metrics" if hasattr(self.__dict__["_program"], "metrics") else "losses"
        return self._fresh(entry, self.bind(args, inputs, all=True), False)

    def objective(
        self,
        name: str,
        inputs: Mapping[str, Tensor],
        published: dict[str, Tensor] | None = None,
        beside: Mapping[str, Tensor] | None = None,
        entry: str | None = None,
        rows: Sequence[int] | None = None,
    ) -> Tensor:
        """One objective of a step that learns, on checked inputs. published: takes what `emit` gives. beside: tensors
        by path that stand before the module's own. entry: another function of the generated code. rows: which rows of
        the batch these are (what is drawn depends on it); None: the whole batch."""
        entry = entry or objective_name(name)
        if hasattr(self.__dict__["_program"], entry):
            return self._fresh(entry, dict(inputs), True, published, beside, rows)
        return self._fresh("losses", dict(inputs), True, published, beside, rows)[name]

    def emitted(self, *args: Any, **inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The output, and what `emit` publishes on the way: name -> the sum over the instances, [B, T, ...]."""
        published: dict[str, Tensor] = {}
        return self._fresh("forward", self.bind(args, inputs), None, published), published

    def train(self, mode: bool = True) -> Module:
        """As torch's. In a bundle whose optimizer evaluates with other weights (an average), `eval()` puts those in."""
        super().train(mode)
        follow = self.__dict__.get("_on_train")
        if follow is not None:
            follow(mode)
        return self

    def initial_state(self, batch: int = 1) -> State:
        """The state of streams that begin; gradients reach the learned starts through it."""
        return State.of(self._begin(batch), batch)

    def _begin(self, batch: int, rows: Sequence[int] | None = None) -> dict[str, Tensor]:
        """The first state of `batch` rows; rows: which ones of the stream they are (what is drawn depends on it)."""
        which = None if rows is None else torch.tensor(rows, device=self.device)
        chance = (self.__dict__["_seed"], self.draws, which) if self.__dict__["_draws_at_random"] else (0, 0, None)
        return self.__dict__["_program"].initial_state(self.weights, batch, *self._kind(), chance)

    @torch.no_grad()
    def begin_sequence(self, state: State, rows: Iterable[int] | None = None) -> State:
        """The state with a new sequence begun in these rows (all by default); what is kept `per stream` goes on.

        Raises NF507 for rows that the state has not.
        """
        self._same_spec(state)
        which = sorted(set(range(state.batch) if rows is None else rows))
        slots = self.__dict__["_graph"].state
        kept = {s.path for s in slots if s.per != "sequence"}
        begun, passes = [], self.__dict__["_passes"]
        for part in state.of_rows(which):
            tensors = part.tensors
            if kept and hasattr(self.__dict__["_program"], "finish"):
                rows_in = torch.tensor(part.rows, device=self.device)
                tensors = self._compute("finish", {}, tensors, part.t, None, age=part.age, rows=rows_in)[1]
            fresh = self._begin(len(part.rows), part.rows)
            tensors = {p: tensors[p] if p in kept else x for p, x in fresh.items()}
            begun.append(Group(part.rows, 0, tensors, part.place[1] if kept else None))
        self.__dict__["_passes"] = passes  # ending a sequence is no pass
        return state.replaced(begun) if begun else state

    def run(
        self, state: State | None = None, *args: Any, training: bool | None = None, **inputs: Any
    ) -> tuple[Tensor, State]:
        """Output for the next ticks of the streams, and the state after them. `state` None opens fresh streams.

        Rows that have seen different numbers of ticks are computed in groups. Raises NF507 where the state has
        other rows.
        """
        found = fast(self, state, args, inputs, self.training if training is None else training)
        if found is not None:
            return found
        bound = self.bind(args, inputs)
        if state is not None and not isinstance(state, State):
            raise fail(
                "NF507",
                f"a state is what `run` or `initial_state` gave, and this is a {type(state).__name__}",
                help="inputs go by name: `module.run(state, tokens=x)`; None opens fresh streams",
            )
        if state is None:
            state = self.initial_state(next(iter(bound.values())).shape[0] if bound else 1)
        return self._run(bound, state, training)

    def _same_spec(self, state: State) -> None:
        """The state's tensors are those of this spec, of the module's type and device. Raises NF507."""
        table = self.__dict__["_program"].STATE
        for g in state.groups:
            wrong = sorted({row[0] for row in table} ^ g.tensors.keys())
            for path, shape, *_ in table:  # a size of 0 grows: the pairs that a cache kept
                kept = g.tensors.get(path)
                if kept is not None and (
                    kept.ndim != len(shape) + 1 or any(a and a != b for a, b in zip(shape, kept.shape[1:]))
                ):
                    wrong.append(path)
            if wrong:
                raise fail("NF507", f"the state is of another spec or other params: see `{wrong[0]}`")
        state.same_kind(*self._kind())

    def _fresh(
        self,
        entry: str,
        bound: dict[str, Tensor],
        training: bool | None,
        published: dict[str, Tensor] | None = None,
        beside: Mapping[str, Tensor] | None = None,
        rows: Sequence[int] | None = None,
    ) -> Any:
        """Fresh streams, whose state is dropped. The number of rows stays symbolic for `torch.export`."""
        batch = next((x.shape[0] for x in bound.values() if x is not None), 1)
        start = self._begin(batch, rows)
        which = None if rows is None else torch.tensor(rows, device=self.device)
        return self._compute(entry, bound, start, 0, training, published, beside, rows=which)[0]

    def _compute(
        self,
        entry: str,
        bound: dict[str, Tensor],
        tensors: dict[str, Tensor],
        t0: int,
        training: bool | None,
        published: dict[str, Tensor] | None = None,
        beside: Mapping[str, Tensor] | None = None,
        age: int | None = None,
        rows: Tensor | None = None,
        program: ModuleType | None = None,
    ) -> tuple[Any, dict[str, Tensor]]:
        """The generated code on rows that have all seen t0 ticks: result, and tensors of the state after.
        published: takes what `emit` gave. program: other code than the module's own."""
        plain = entry == "forward" and published is None and beside is None and program is None
        if plain and (found := block_by_block(self, bound, tensors, t0, training, age, rows)) is not None:
            return found
        mode = self.training if training is None else training
        known = self.weights
        if self.__dict__["_kept"] or beside:
            known = {**known, **beside_them(self.kept), **(beside or {})}
        if lasting := self.__dict__["_lasting"]:
            tensors, age = enter(lasting, self.kept, self._starts(lasting, known), tensors)
        c = Context(known, tensors, t0, mode, *self._kind(), self.__dict__["_networks"], age)
        c.how = how(self.__dict__["_graph"])
        if self.__dict__["_draws_at_random"]:
            c.seed, c.step, c.rows = self.__dict__["_seed"], self.draws, rows
            self.__dict__["_passes"] += mode
        try:
            given = [bound.get(i.name) for i in self.__dict__["_graph"].inputs]
            result = computed(getattr(program or self.__dict__["_program"], entry), c, given)
        except UnequalPartsError as e:
            raise unequal(self.__dict__["_graph"], e.rows, e.copies) from e
        except IndexError as e:
            if "out of range" not in str(e) and "out of bounds" not in str(e):
                raise
            raise fail(
                "NF506",
                f"an index lies outside a table, or a class outside the scores ({str(e).rstrip('.')})",
                help="bounds on the input say which: `input tokens : int[T] in [0, vocab)`",
            ) from e
        if lasting:
            leave(self.kept, {**tensors, **c.n}, self._ticks(bound))
        if published is not None:
            c.publish()
            published.update(c.published)
        return result, {**tensors, **c.n}

    def _starts(self, lasting: tuple[StateSlot, ...], known: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights, and what memories start from that is computed from them."""
        if all(s.init is None or s.init in known for s in lasting):
            return known
        return {**known, **self.__dict__["_program"].starts(Context(known, {}, 0, False, *self._kind()))}

    def _ticks(self, bound: Mapping[str, Tensor]) -> int:
        """How many ticks a call brings."""
        clocked = [i.name for i in self.__dict__["_graph"].inputs if i.type.clock == "T" and i.name in bound]
        return bound[clocked[0]].shape[1] if clocked else 1

    def _run(self, bound: dict[str, Tensor], state: State, training: bool | None) -> tuple[Any, State]:
        batch = next(iter(bound.values())).shape[0] if bound else 1
        if state.batch != batch:
            raise fail(
                "NF507",
                f"the state has {state.batch} rows, and the inputs have {batch}",
                help="`stream.reset(rows)` starts rows anew, `module.initial_state(batch)` opens streams",
            )
        self._same_spec(state)
        if self.__dict__["_ahead"] and any(g.t for g in state.groups):
            raise fail(
                "NF536",
                "this spec attends to later tokens (`causal = false`): a sequence comes in one call",
                self.__dict__["_ahead"],
                "call the module with whole sequences, or open a fresh stream for each",
            )
        if self.__dict__["_lasting"] and len(state.groups) > 1:
            message = "rows that stand at different ticks cannot write the one copy of a memory `per model` together"
            raise fail("NF507", message, help="begin a new sequence, or reset, in all rows at once")
        ticks = self._ticks(bound)
        token = one_token(self) if ticks == 1 and undisturbed() else None
        outs, groups = [], []
        passes = self.__dict__["_passes"]
        for g in state.groups:
            self.__dict__["_passes"] = passes  # groups are computed apart, and this is one pass: they draw by one step
            part, which = bound, None
            if len(state.groups) > 1:
                which = torch.tensor(g.rows, device=self.device)
                part = {n: x[which] for n, x in bound.items()}
            out, tensors = self._compute(
                "forward", part, g.tensors, g.t, training, age=g.age, rows=which, program=token and token.program
            )
            outs.append(out)
            groups.append(g.moved(ticks, tensors))
        if len(outs) == 1:
            return outs[0], State(tuple(groups), token.mark(*self._kind()) if token else None)
        order = [r for g in groups for r in g.rows]
        back = torch.tensor(sorted(range(batch), key=order.__getitem__), device=self.device)
        if isinstance(outs[0], Mapping):
            return {n: torch.cat([o[n] for o in outs])[back] for n in outs[0]}, State(tuple(groups))
        return torch.cat(outs)[back], State(tuple(groups))


def _no_room(graph: LevelGraph, spec: WeightSpec, e: Exception) -> Exception:
    """What to raise where a weight could not be made: the size of the model, if memory is what lacks."""
    if not isinstance(e, MemoryError) and "memory" not in str(e):
        return e
    count = sum(math.prod(w.full_shape) for w in graph.weights)
    return fail(
        "NF518",
        f"no memory for `{spec.path}`, {math.prod(spec.full_shape):,} numbers; the spec has {count:,} in all",
        spec.span,
        "is a size a typo? `nestflow check --shapes` lists them",
    )
