"""Lines of Python with indentation, the imports they need, and unique names for functions."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nestflow.diagnostics.core import Span
    from nestflow.graph.model import Instance

TOKEN = "nestflow.ops.token"
RESERVED = frozenset(
    {
        "c",
        "p",
        "F",
        "torch",
        "nn",
        "math",
        "T",
        "B",
        "forward",
        "losses",
        "metrics",
        "finish",
        "initial_state",
        "Context",
        "Model",
    }
    | {"WEIGHTS", "STATE", "INPUTS", "INNER"}
)


def identifier(text: str) -> str:
    """A Python identifier made from a name of the text (which may hold dots, dashes or be a keyword)."""
    name = re.sub(r"\W", "_", text) or "x"
    if name[0].isdigit():
        name = "_" + name
    return name + "_" if keyword.iskeyword(name) or name in RESERVED else name


class Writer:
    """Collects lines. `use` notes an import and gives the name back, so that it can stand in the expression."""

    def __init__(self, one_token: bool = False) -> None:
        self.one_token = one_token  # what is written is called with one token at a time
        self.lines: list[str] = []
        self.imports: dict[str, set[str]] = {}
        self.modules: set[str] = set()  # imported whole
        self.functions: dict[int, str] = {}  # id(instance) -> the function that computes it
        self._instances: list[Instance] = []  # keeps ids alive
        self._taken: set[str] = set(RESERVED)
        self._depth = 0

    def line(self, text: str = "") -> None:
        """One statement (or several lines) at the current indentation."""
        for part in text.split("\n"):
            self.lines.append(("    " * self._depth + part).rstrip())

    @contextmanager
    def block(self, header: str) -> Iterator[None]:
        """`with writer.block("for i in range(3):"):` indents what is written inside."""
        self.line(header)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    def use(self, module: str, name: str) -> str:
        """Import `name` from `module` in the generated file; the name, to be called. Where there is one token, what
        `nestflow.ops.token` has of that name stands in for it."""
        if self.one_token and name in for_one_token():
            module = TOKEN
        other = next((m for m, names in self.imports.items() if name in names and m != module), module)
        if other != module:  # one shadows the other in the file
            same = getattr(import_module(module), name) is getattr(import_module(other), name)
            assert same, f"`{name}` is one thing in {module}, another in {other}"
        self.imports.setdefault(other, set()).add(name)
        self._taken.add(name)
        return name

    def function_name(self, base: str) -> str:
        """A top-level name that no other function of this file has."""
        name = base = identifier(base)
        n = 1
        while name in self._taken or name in operations():
            n += 1
            name = f"{base}_{n}"
        self._taken.add(name)
        return name

    def register(self, instance: Instance, function: str) -> None:
        """Say which function computes an instance (its parents call it)."""
        self.functions[id(instance)] = function
        self._instances.append(instance)

    def function(self, instance: Instance) -> str:
        """The function that computes an instance; children are written before their parents."""
        return self.functions[id(instance)]

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


@cache
def for_one_token() -> frozenset[str]:
    """The operations that have a form of their own for one token."""
    return frozenset(n for n, x in vars(import_module(TOKEN)).items() if getattr(x, "__module__", "") == TOKEN)


@cache
def operations() -> frozenset[str]:
    """The names that generated code may import: a flow of such a name is another function."""
    import nestflow.ops

    rooms = [f"nestflow.ops.{found.name}" for found in iter_modules(nestflow.ops.__path__)]
    return frozenset(n for r in rooms for n, x in vars(import_module(r)).items() if getattr(x, "__module__", "") == r)


def place(span: Span | None) -> str:
    """`  # hope.nl:12`, to stand behind a line of code."""
    return f"  # {short_name(span.source.name)}:{span.line}" if span is not None else ""


def short_name(source: str) -> str:
    """A source's name without its folders: generated code should not tell where it was made."""
    return plain(source.replace("\\", "/").rsplit("/", 1)[-1].replace("\n", " "))


def plain(text: str) -> str:
    """A spec's own text (names of files, docs) for a comment or docstring: nothing in it can end either and be run."""
    safe = text.replace("\\", "/").replace('"', "'")
    return "".join(c if c.isprintable() or c == "\n" else " " for c in safe)
