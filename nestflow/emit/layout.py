"""Where the carried axes of a value lie: [B, H, T, *features], each of B, H, T present only if its type has it."""

from __future__ import annotations

from nestflow.ir.node import Type

LETTERS = "DMNKEPQRSUWXYZIJLO"
ABREAST = "A"  # the axis of memories that run side by side, in front of all others


def axes(t: Type) -> str:
    """The carried axes that a value has, in order: a part of "BHT"."""
    return ("B" if t.batch else "") + ("H" if t.heads else "") + ("T" if t.clock else "")


def head_axis(t: Type) -> int:
    """The position of the head axis, were it there."""
    return 1 if t.batch else 0


def tick_axis(t: Type) -> int:
    """The position of the token axis counted from the end (negative)."""
    return -1 - len(t.shape)


def index_to(t: Type, target: Type, features: int | None = None) -> str:
    """What to write behind a value of type t so that it broadcasts against one of type target: "" or "[:, None]" etc.

    features: rank of the target's features (len(target.shape) by default; len(t.shape) to leave them alone).
    Ticks that the target lacks at its end (`short`) are cut off.
    """
    rank = len(target.shape) if features is None else features
    own, want = axes(t), axes(target)
    parts: list[str] = []
    for axis in "BHT":
        if axis in own:
            cut = target.short - t.short if axis == "T" else 0
            parts.append(f":-{cut}" if cut > 0 else ":")
        elif axis in want:
            parts.append("None")
    parts += ["None"] * max(0, rank - len(t.shape)) + [":"] * len(t.shape)
    while parts and parts[0] == "None":
        parts.pop(0)
    if all(x == ":" for x in parts):
        return ""
    last = max(i for i, x in enumerate(parts) if x != ":")
    first = min(i for i, x in enumerate(parts) if x != ":")
    if last == len(parts) - 1 and first > 1 and all(x == "None" for x in parts[first:]):
        return "[..., " + ", ".join(parts[first:]) + "]"
    return "[" + ", ".join(parts[: last + 1]) + "]"


class Letters:
    """One letter per feature width, for the suffix of tensor names: `k_BHTD`."""

    def __init__(self, known: dict[int, str] | None = None) -> None:
        self.known: dict[int, str] = dict(known or {})

    def of(self, size: int) -> str:
        if size == 1:
            return "1"
        if size not in self.known:
            used = set(self.known.values())
            free = [x for x in LETTERS if x not in used]
            self.known[size] = free[0] if free else "X"
        return self.known[size]

    def suffix(self, t: Type, ticks: str = "T", lead: str = "") -> str:
        """`_BHTD`, or "" for a number without any axis. lead: an axis in front."""
        text = lead + axes(t).replace("T", ticks) + "".join(self.of(n) for n in t.shape)
        return "_" + text if text else ""

    def legend(self) -> str:
        """`D = 128, M = 32`, for a comment."""
        return ", ".join(f"{letter} = {size}" for size, letter in self.known.items())
