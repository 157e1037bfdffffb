"""What every generated `optim.py` is built on: one torch.optim.Optimizer for all levels on the step clock.

A level ticks at every step; it sums the gradients that the ticks bring and learns at the ticks that are multiples of
its `every`. All state is allocated when the optimizer is made: torch.distributed.checkpoint would otherwise run a
hidden step to create it, which would move the clocks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor

from nestflow.bundle.step_clocks import Clocked
from nestflow.bundle.step_learn import learn
from nestflow.bundle.step_level import (
    NEEDS_INPUTS,
    NEEDS_OBJECTIVE,
    Fact,
    Level,
    Weights,
    as_groups,
    as_named,
    copy_of,
    expand,
    fact_of,
    mistake,
)
from nestflow.ops.rules import state_dtype, zeros


class StepOptimizer(Clocked, torch.optim.Optimizer):
    """`Optimizer(weights, total_steps=None, **settings)`.

    weights: a mapping or pairs from name to parameter (a single level also takes parameters or torch's param groups).
    total_steps: the run's length in steps, which schedules need (`set_total_steps` sets it later).
    foreach: whether elementwise rules run on lists of small weights at once (None: they do); the numbers are the same.
    settings: other values of the rules' arguments, `lr=1e-3` for every level that has it or `**{"outer.lr": 1e-3}`.
    """

    levels: ClassVar[tuple[type[Level], ...]] = ()
    single_objective: ClassVar[bool] = True
    needs_inputs: ClassVar[dict[str, bool]] = {}  # weight -> whether its inputs are normalised

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.needs_inputs = {name: level.normalize for level in cls.levels for name in level.inputs}

    def __init__(
        self, weights: Weights, total_steps: int | None = None, *, foreach: bool | None = None, **settings: Any
    ) -> None:
        self.input_grams: dict[
            str, Tensor
        ] = {}  # weight -> Σ x xᵀ / terms of the loss, set by whoever ran the forward pass
        self.curvatures: dict[str, Tensor] = {}  # weight -> z ⊙ Hz of this batch, set by whoever has the objective
        self._level = {level.name: level for level in self.levels}
        self._settings = self._checked(settings)
        self._updated: dict[str, bool] = {}
        self._known_facts: dict[tuple[str, str], Fact] = {}
        self.total_steps = total_steps
        self.foreach = foreach
        groups = self._make_groups(weights)
        # torch refuses an optimizer without groups; a model may have nothing to learn on this clock
        super().__init__(groups or [{"params": [], "level": "", "every": 1, "names": [], "lr": 0.0}], {})
        self._scheduled: dict[tuple[int, str], Any] = {}

    # --- groups and state ------------------------------------------------------------------------------

    def _checked(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        probe = Fact("", 2, 2, 2)
        known = {
            level.name: {*level.hypers(probe), *level.schedule(1, math.inf, level.every, probe)}
            for level in self.levels
        }
        for name in settings:
            level, _, own = name.rpartition(".")
            if level in known:
                allowed = known[level]
            else:
                allowed, own = set().union(*known.values()), name
            if own not in allowed:
                words = ", ".join(f"`{a}`" for a in sorted(allowed)) or "none"
                raise mistake("NF541", f"`{name}` is no setting of this optimizer.", f"its settings: {words}")
        return dict(settings)

    def _make_groups(self, weights: Weights) -> list[dict[str, Any]]:
        if len(self.levels) == 1 and self.levels[0].weights is None:
            level, groups = self.levels[0], []
            for part, own in as_groups(weights):
                groups += self._split(level, part, own)
            return groups
        named = as_named(weights, chain.from_iterable(level.weights or () for level in self.levels))
        groups = []
        for level in self.levels:
            missing = [n for n in level.weights or () if n not in named]
            if missing:
                raise mistake(
                    "NF544",
                    f"level `{level.name}` learns `{missing[0]}`, which is not among the weights given"
                    + (f" ({len(missing)} are missing)." if len(missing) > 1 else "."),
                    "pass the weights of the compiled module: `dict(module.named_weights())`",
                )
            wanted = set(level.weights or ())
            groups += self._split(level, [(n, w) for n, w in named.items() if n in wanted], {})
        return groups

    def _split(
        self, level: type[Level], named: Sequence[tuple[str, Tensor]], own: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """One group for each distinct set of the rule's arguments. own: settings of a user's group."""
        unknown = [k for k in own if k not in self._setting_names(level)]
        if unknown:
            self._checked({unknown[0]: own[unknown[0]]})
        groups: dict[Any, dict[str, Any]] = {}
        for name, w in named:
            fact = fact_of(name, w, int(name in level.per_head))
            values = level.hypers(fact)
            timed = level.schedule(1, self.total_steps or math.inf, level.every, fact)
            values |= timed
            values |= {k: v for k, v in self._overrides(level).items() if k in values} | dict(own)
            marks = tuple(getattr(fact, f) for f in level.schedule_facts)
            marks = (*marks, copy_of(level, name))
            group = groups.get((*values.items(), marks))
            if group is None:
                fixed = [k for k in timed if k in own]
                group = {
                    "params": [],
                    "names": [],
                    "level": level.name,
                    "every": level.every,
                    "ticks": 0,
                    "updates": 0,
                    "n_ticks": 0,
                    "total_steps": self.total_steps or 0,
                    "evaluating": False,
                    "scheduled": 0,
                    **values,
                }
                if fixed:
                    group["fixed"] = fixed
                groups[(*values.items(), marks)] = group
            group["params"].append(w)
            group["names"].append(name)
        return list(groups.values())

    def _setting_names(self, level: type[Level]) -> set[str]:
        probe = Fact("", 2, 2, 2)
        return {*level.hypers(probe), *level.schedule(1, math.inf, level.every, probe)}

    def _overrides(self, level: type[Level]) -> dict[str, Any]:
        own = {k.rpartition(".")[2]: v for k, v in self._settings.items() if k.rpartition(".")[0] == level.name}
        return {k: v for k, v in self._settings.items() if "." not in k} | own

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; the new weights' memories are allocated at once."""
        if "level" in param_group:
            super().add_param_group(param_group)
            self._allocate(self.param_groups[-1])
            return
        if len(self.levels) != 1 or self.levels[0].weights is not None:
            raise mistake(
                "NF544",
                "the weights of this optimizer's levels are fixed by its spec.",
                "compile the spec again with the new weights in it",
            )
        for part, own in as_groups([param_group], sum(len(g["params"]) for g in self.param_groups)):
            for group in self._split(self.levels[0], part, own):
                self.add_param_group(group)

    @torch.no_grad()
    def _allocate(self, group: dict[str, Any]) -> None:
        level = self._level.get(group["level"])
        if level is None:
            return
        for w, fact in zip(group["params"], self._facts(level, group)):
            if level.reads_inputs and level.weights is None:
                raise mistake("NF543", *NEEDS_INPUTS)
            if level.reads_curvature and level.weights is None:
                raise mistake("NF543", *NEEDS_OBJECTIVE)
            state = self.state[w]
            state["step"] = 0
            if level.every > 1:
                state["pending"] = zeros(w)
                state["pending_ticks"] = 0
                if fact.path in level.inputs:
                    state["pending_gram"] = w.new_zeros(
                        (*w.shape[: fact.heads], w.shape[-1], w.shape[-1]), dtype=state_dtype(w.dtype)
                    )
            state.update(level.slots(w, fact))

    # --- steps -----------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]  (torch has overloads)
        """One tick of every level, from the gradients in `.grad`. Returns what the closure returns, if there is one."""
        if not self.single_objective:
            raise mistake(
                "NF542",
                "the levels of this optimizer minimise different objectives, so one `backward()` is not enough.",
                "call `b.step(batch)` of the bundle, which takes each level's gradient of its own objective",
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step_levels(None)
        return loss

    @torch.no_grad()
    def _step_levels(self, names: Iterable[str] | None) -> None:
        """One tick of the levels named (None: all)."""
        wanted = None if names is None else set(names)
        if wanted is None or not self._updated.keys().isdisjoint(wanted):
            self._updated = {}
        for level in self.levels:
            if wanted is None or level.name in wanted:
                self._updated[level.name] = self._tick(
                    level, [g for g in self.param_groups if g["level"] == level.name]
                )

    def _tick(self, level: type[Level], groups: list[dict[str, Any]]) -> bool:
        if any(g["evaluating"] for g in groups):
            raise mistake(
                "NF546",
                "the weights are those that the module is evaluated with.",
                "call `optimizer.train()` before the next step",
            )
        brought = any(w.grad is not None for g in groups for w in g["params"])
        for g in groups:
            g["ticks"] += 1
            g["n_ticks"] += brought
            self._follow_schedule(level, g)
        ready: list[tuple[Tensor, Tensor, dict[str, Any], dict[str, Any], Fact, Tensor | None]] = []
        learns = bool(groups) and groups[0]["ticks"] % level.every == 0
        for g in groups:
            for w, fact in zip(g["params"], self._facts(level, g)):
                grad, gram = self._gradient(level, w, fact, learns)
                if grad is not None:
                    self.state[w]["step"] += 1
                    ready.append((w, grad, self.state[w], g, fact, gram))
        for i in range(level.copies or 1):  # a worker's copy learns by itself
            own = [r for r in ready if copy_of(level, r[4].path) == i] if level.copies else ready
            if not own:
                continue
            learn(level, own, level.elementwise and self.foreach is not False, self.curvatures)
            for name in level.shared:  # one for all: weights without a gradient have it too
                for w, fact in ((w, f) for g in groups for w, f in zip(g["params"], self._facts(level, g))):
                    if w is not own[0][0] and copy_of(level, fact.path) == i:
                        self.state[w][name].copy_(self.state[own[0][0]][name].reshape(-1)[0])
        if learns:
            for w in chain.from_iterable(g["params"] for g in groups):
                for kept in ("pending", "pending_gram"):
                    if kept in self.state[w]:
                        self.state[w][kept].zero_()
                if level.every > 1:
                    self.state[w]["pending_ticks"] = 0
            for g in groups:
                g["updates"] += bool(ready)
                g["n_ticks"] = 0
        return bool(ready)

    def _gradient(self, level: type[Level], w: Tensor, fact: Fact, learns: bool) -> tuple[Tensor | None, Tensor | None]:
        """The gradient that this tick's update sees: None where the weight learns nothing now."""
        grad, gram, state = w.grad, None, self.state[w]
        if not w.numel():  # a network's weight with an axis of size 0: rules of matrices have no norm or root of it
            return None, None
        if grad is not None:
            if grad.is_sparse:
                raise mistake(
                    "NF545", f"`{fact.path}` has a sparse gradient.", "make its embedding with `sparse=False`"
                )
            grad = grad.to(state_dtype(grad.dtype))
            if fact.path in level.inputs:
                gram = self.input_grams.get(fact.path)
                if gram is None:
                    raise mistake(
                        "NF543",
                        f"dgd needs the inputs of `{fact.path}` besides its gradient, and this step brought none.",
                        "train through the bundle: `b.step(batch)`",
                    )
        if level.every == 1:
            return grad, gram
        if grad is not None:
            state["pending"].add_(grad)
            state["pending_ticks"] += 1
            if gram is not None:
                state["pending_gram"].add_(gram)
        if not learns or not state["pending_ticks"]:
            return None, None
        return state["pending"], state.get("pending_gram")

    def wants_curvature(self, names: Iterable[str]) -> set[str]:
        """The levels named whose next tick reads curvatures."""
        found = set()
        for level in (self._level[n] for n in names):
            groups = [g for g in self.param_groups if g["level"] == level.name and g["params"]]
            if level.reads_curvature and groups and (groups[0]["ticks"] + 1) % level.every == 0:
                steps = {self.state[w]["step"] + 1 for g in groups for w in g["params"]}
                found |= {level.name} if any(map(level.curvature_due, steps)) else set()
        return found

    def _follow_schedule(self, level: type[Level], group: dict[str, Any]) -> None:
        if not group["params"]:
            return
        values = level.schedule(
            group.get("scheduled", 0) + group["ticks"],
            group["total_steps"] or math.nan,
            level.every,
            self._facts(level, group)[0],
        )
        fixed = {*self._overrides(level), *group.get("fixed", ())}
        for name, value in values.items():
            if name in fixed:
                continue
            if math.isnan(value):
                raise mistake(
                    "NF540",
                    f"the schedule of `{name}` in level `{level.name}` needs the run's length, which is not known.",
                    "write its `total`, or call `optimizer.set_total_steps(n)`",
                )
            self._warn_of_a_second_schedule(level, group, name)
            group[name] = value
            self._scheduled[id(group), name] = value

    def _warn_of_a_second_schedule(self, level: type[Level], group: dict[str, Any], name: str) -> None:
        """Someone else set a value that the spec's schedule sets at each step: theirs would be lost in silence."""
        last = self._scheduled.get((id(group), name))
        if last is not None and group[name] != last:
            warnings.warn(
                f"`{name}` of level `{level.name}` was set from outside, and the schedule in the spec sets it again at "
                "each step: write a constant rate in the spec to use another scheduler",
                stacklevel=5,
            )

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            "total_steps": self.total_steps,
            "_settings": self._settings,
            "foreach": self.foreach,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:  # also when torch loads state
        self.__dict__.setdefault("foreach", None)
        self.__dict__.setdefault("_level", {level.name: level for level in self.levels})
        for name in ("input_grams", "curvatures", "_updated", "_known_facts", "_scheduled"):
            self.__dict__.setdefault(name, {})
        super().__setstate__(state)

    def set_total_steps(self, steps: int) -> None:
        """The run's length in steps, for schedules without a `total` of their own."""
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise mistake("NF518", f"the number of steps is a whole number from 1, and this is {steps!r:.60}")
        self.total_steps = steps
        for g in self.param_groups:
            g["total_steps"] = steps

    @torch.no_grad()
    def follow_weights(self) -> None:
        """After a module was moved (`.cuda()`, `.double()`): what is kept for each weight goes where it went."""
        for w, state in self.state.items():
            for name, kept in state.items():
                if isinstance(kept, Tensor) and not (kept.ndim == 0 and kept.dtype == torch.float64):
                    dtype = state_dtype(w.dtype) if kept.is_floating_point() else kept.dtype
                    state[name] = kept.to(device=w.device, dtype=dtype)

    # --- evaluation, report, checkpoints ----------------------------------------------------------------

    @torch.no_grad()
    def eval(self) -> None:
        """Put in place the weights that the rule's `eval` names (an average, say). Nothing where there is none."""
        self._swap(True)

    @torch.no_grad()
    def train(self, mode: bool = True) -> None:
        """Put the weights that are trained back in place."""
        self._swap(not mode)

    def _swap(self, evaluating: bool) -> None:
        for g in self.param_groups:
            level = self._level.get(g["level"])
            if level is None or not level.evaluates or g["evaluating"] == evaluating:
                continue
            g["evaluating"] = evaluating
            for w, fact in zip(g["params"], self._facts(level, g)):
                state = self.state[w]
                if evaluating:
                    state["training_weight"].copy_(w)
                    w.copy_(level.evaluate(w, state, g, fact))
                else:
                    w.copy_(state["training_weight"])

    def report(self) -> dict[str, dict[str, Any]]:
        """{level: {"updated": did the last step change it, "every": its period in steps, "updates": so far}}."""
        result = {}
        for level in self.levels:
            groups = [g for g in self.param_groups if g["level"] == level.name]
            result[level.name] = {
                "updated": self._updated.get(level.name, False),
                "every": level.every,
                "updates": max((g["updates"] for g in groups), default=0),
            }
        return result

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue exactly from a `state_dict()`: memories, pending sums, clocks and the place in a schedule."""
        own_total = self.total_steps
        super().load_state_dict(state_dict)
        ids = chain.from_iterable(g["params"] for g in state_dict["param_groups"])
        weights = chain.from_iterable(g["params"] for g in self.param_groups)
        for i, w in zip(
            ids, weights
        ):  # torch casts state to the weight's dtype; memories of half-precision weights are float32
            for k, v in state_dict["state"].get(i, {}).items():
                if isinstance(v, Tensor):
                    self.state[w][k] = v.detach().to(
                        device=v.device if v.ndim == 0 and v.dtype == torch.float64 else w.device, copy=True
                    )
        for g in self.param_groups:
            g["total_steps"] = own_total or g.get("total_steps", 0)
        self.total_steps = own_total or next((g["total_steps"] for g in self.param_groups), 0) or None
        self._updated, self._scheduled = {}, {}


__all__ = ["Fact", "Level", "StepOptimizer", "expand", "fact_of"]
