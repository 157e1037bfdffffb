"""Colours of the pictures, light and dark. Hue says which clock, strength how often; edges have a hue per kind."""

from __future__ import annotations

from typing import Literal

Theme = Literal["light", "dark"]

EDGES = {
    "context": ("an output feeds a context", "#64748b", "#94a3b8"),
    "generates": ("a recall supplies a key, value, rate or gate", "#7c3aed", "#a78bfa"),
    "optimises": ("an optimiser's memory writes another memory", "#e11d48", "#fb7185"),
    "initialises": ("a slower level supplies the start", "#059669", "#34d399"),
}
TERMINAL_EDGES = {"context": "bright_black", "generates": "magenta", "optimises": "red", "initialises": "green"}

PAPER = {"light": "#fdfdfb", "dark": "#12151c"}
CARD = {"light": "#ffffff", "dark": "#1c212b"}
INK = {"light": "#1c2430", "dark": "#e8ecf3"}
SOFT = {"light": "#5d6878", "dark": "#9aa6b8"}
FAINT = {"light": "#dfe3e8", "dark": "#313949"}

# fastest to slowest within a clock
_RAMPS = {
    "token": [("#e8590c", "#ff922b"), ("#f08c00", "#ffa94d"), ("#e0a106", "#ffd43b"), ("#b8a12c", "#e9d67a")],
    "step": [("#1971c2", "#4dabf7"), ("#3b6fc9", "#748ffc"), ("#5f6dc2", "#91a7ff"), ("#7a7fb5", "#a5b0e0")],
    "other": [("#0b7285", "#3bc9db")],
    "never": [("#868e96", "#868e96")],
}


def lane_colour(clock: str, every: int, index: int, theme: Theme) -> str:
    """The accent of a lane; index counts the lanes of one clock, fastest first."""
    ramp = _RAMPS["never"] if every == 0 else _RAMPS.get(clock, _RAMPS["other"])
    return ramp[min(index, len(ramp) - 1)][theme == "dark"]


def blend(colour: str, ground: str, amount: float) -> str:
    """`amount` of colour on ground, both `#rrggbb`."""
    a, b = (tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in (colour, ground))
    return "#" + "".join(f"{round(x * amount + y * (1 - amount)):02x}" for x, y in zip(a, b))
