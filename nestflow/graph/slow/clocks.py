"""Clocks of a spec's own: `clock task` is ticked by the caller, `clock round = 500 steps` by another clock."""

from __future__ import annotations

from typing import Any

from nestflow.diagnostics.suggest import did_you_mean
from nestflow.graph.declarations import plain
from nestflow.graph.model import ClockSpec
from nestflow.graph.names import check_name
from nestflow.language import tree

TAKEN = ("step", "token", "tick", "update", "sequence", "chunk", "never", "second", "unit")
LONGEST = 10**9


class Clocks:
    """The clocks that are declared, in order of the text."""

    def __init__(self, elab: Any) -> None:
        self.elab = elab
        self.known: dict[str, ClockSpec] = {}

    def declare(self, s: tree.Clock) -> None:
        """Settle one declaration. Raises NF219, NF220, NF401, NF402, NF406."""
        elab = self.elab
        check_name(elab, s.name, s.span)
        if s.name in TAKEN or s.name.removesuffix("s") in TAKEN:
            message = f"`{s.name}` is a clock or a word of clocks already"
            raise elab.failure("NF219", message, s.span, "choose another name: `clock episode`")
        if s.count is None:
            self.known[s.name] = ClockSpec(s.name, s.name, 1, s.span)
            return
        if s.unit is None:
            raise elab.failure("NF402", f"the clock `{s.name}` needs a unit", s.span, f"`clock {s.name} = 500 steps`")
        n = plain(elab, s.count, "a clock's period")
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= LONGEST:
            message = f"a clock's period is a whole number from 1 to 10^9, and this is {n}"
            raise elab.failure("NF406", message, s.count.span, f"`clock {s.name} = 500 steps`")
        base = self.unit(s.unit, s)
        self.known[s.name] = ClockSpec(s.name, base.base, base.count * n, s.span)

    def unit(self, written: str, s: tree.Node) -> ClockSpec:
        """The clock that a unit names: `steps`, or one that is declared above."""
        for name in (written, written.removesuffix("s")):
            if name in self.known:
                return self.known[name]
        name = written.removesuffix("s")
        if name == "step":
            return ClockSpec("step", "step", 1)
        if name == "token":
            raise self.elab.not_yet("a clock that tokens tick", s.span)
        help_ = did_you_mean(name, ["step", *self.known]) or "declare it above: `clock task`"
        raise self.elab.failure("NF401", f"`{written}` is no clock", s.span, help_)


__all__ = ["Clocks"]
