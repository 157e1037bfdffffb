"""What an optimizer of levels counts besides its own steps: clocks, and levels that begin anew."""

from __future__ import annotations

from typing import Any

import torch

from nestflow.bundle.step_level import Fact, Level, fact_of


class Clocked:
    """The part of a step optimizer that `b.step` and `b.tick` use. What it counts is kept in its groups, and saved."""

    param_groups: list[dict[str, Any]]
    state: Any
    _level: dict[str, type[Level]]
    _known_facts: dict[tuple[str, str], Fact]

    def _facts(self, level: type[Level], group: dict[str, Any]) -> list[Fact]:
        known = self._known_facts
        for n, w in zip(group["names"], group["params"]):
            if (level.name, n) not in known:
                known[level.name, n] = fact_of(n, w, int(n in level.per_head))
        return [known[level.name, n] for n in group["names"]]

    def count(self, clock: str) -> int:
        """One more tick of a clock; how many it has had."""
        ticks = self.param_groups[0].setdefault("clock_ticks", {})
        ticks[clock] = ticks.get(clock, 0) + 1
        return ticks[clock]

    def steps(self) -> int:
        """Steps so far, one that is under way included: of `b.step`, or of `optimizer.step()`."""
        counted = self.param_groups[0].get("clock_ticks", {}).get("step", 0)
        return max(counted, *(g.get("ticks", 0) for g in self.param_groups))

    def _groups_of(self, level: str) -> list[dict[str, Any]]:
        return [g for g in self.param_groups if g["level"] == level]

    def learns_next(self, level: str) -> bool:
        """Whether the level learns at its next tick."""
        return any((g["ticks"] + 1) % g["every"] == 0 for g in self._groups_of(level))

    def restarts(self, level: str) -> bool:
        """Whether the level begins anew at its next tick."""
        return any(g.get("restart", False) for g in self._groups_of(level))

    def mark_restart(self, level: str) -> None:
        for g in self._groups_of(level):
            g["restart"] = True

    @torch.no_grad()
    def restart(self, name: str, keep_rule: bool = False) -> None:
        """The level begins anew: sums, counts and (unless spared) the rule's memories, for weights as they are now."""
        level = self._level[name]
        for g in self._groups_of(name):
            g["restart"] = False
            g["scheduled"] = g.get("scheduled", 0) + g["ticks"] if keep_rule else 0  # where a schedule stands
            g["n_ticks"] = g["ticks"] = 0
            if not keep_rule:
                g["updates"] = 0
            for w, fact in zip(g["params"], self._facts(level, g)):
                state = self.state[w]
                for kept in ("pending", "pending_gram"):
                    if kept in state:
                        state[kept].zero_()
                if level.every > 1:
                    state["pending_ticks"] = 0
                if not keep_rule:
                    state["step"] = 0
                    for slot, start in level.slots(w, fact).items():
                        state[slot].copy_(start)
