"""What an argument may be: an interval of numbers, or some values. Params, slots and the words' records share it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bounds:
    """What stands after `in`: an interval of numbers (None: without that end), or the values that are allowed."""

    low: float | None
    high: float | None
    low_open: bool = False
    high_open: bool = False
    values: tuple[Any, ...] | None = None

    def allow(self, value: Any) -> bool:
        if self.values is not None:
            return value in self.values
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
            return False
        above = self.low is None or value > self.low or (value == self.low and not self.low_open)
        return above and (self.high is None or value < self.high or (value == self.high and not self.high_open))

    @property
    def text(self) -> str:
        """As the end of `p is …`."""
        if self.values is not None:
            return "one of " + ", ".join(str(v) for v in self.values)
        if self.high is None and self.low is not None:
            return f"{'above' if self.low_open else 'at least'} {self.low}"
        if self.low is None and self.high is not None:
            return f"{'below' if self.high_open else 'at most'} {self.high}"
        if self.low is None:
            return "a number"
        return f"in {'(' if self.low_open else '['}{self.low}, {self.high}{')' if self.high_open else ']'}"


def parse_bounds(text: str) -> Bounds:
    """`[0, 1)`, `(0, inf)` of a record's signature."""
    low, _, high = (s.strip() for s in text[1:-1].partition(","))
    return Bounds(_end(low), _end(high), text[0] == "(", text[-1] == ")")


def _end(text: str) -> float | None:
    if text in ("inf", "-inf"):
        return None
    return int(text) if text.lstrip("-").isdigit() else float(text)
