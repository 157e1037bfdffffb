"""Rows and heads as one axis inside a loop: products of three axes are one operation each, those of more are six.

A piece that does the same whatever axes stand in front may be given them as one, G. That is read off its text: all of
it is elementwise, or goes along the last axes, or is told what stands in front (`lead`); and all it is given has rows
and heads, or has been put into this form already.
"""

from __future__ import annotations

import ast
import re
import textwrap
from typing import TYPE_CHECKING

from nestflow.emit.levels.stacks import STACK
from nestflow.emit.pointwise import CALLS

if TYPE_CHECKING:
    from nestflow.emit.levels.level import LevelCode

FUNCTIONS = frozenset(["l2norm", "rmsnorm", "maximum", "minimum"])  # along the last axis, or elementwise
METHODS = frozenset(["mean", "sum", "amax", "detach"])  # the first three along axes counted from the last
TORCH = frozenset(text.partition("(")[0] for text in CALLS.values()) | {"torch.ops.aten.gelu_backward", "torch.where"}


def any_lead(lines: list[str], known: set[str]) -> bool:
    """Whether a piece's text does the same for any axes in front. known: functions that are told what they are, and the
    variable that tells them."""
    (function,) = ast.parse(textwrap.dedent("\n".join(lines))).body
    assert isinstance(function, ast.FunctionDef)
    own = {a.arg for a in function.args.args}
    own |= {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    called = {id(n.func) for n in ast.walk(function) if isinstance(n, ast.Call)}
    return all(_any_lead(n, own, known, called) for s in function.body for n in ast.walk(s))


def _any_lead(n: ast.AST, own: set[str], known: set[str], called: set[int]) -> bool:
    if isinstance(n, ast.Call):
        if isinstance(n.func, ast.Attribute) and n.func.attr in METHODS:
            return n.func.attr == "detach" or _from_the_last(n)
        return ast.unparse(n.func) in TORCH | FUNCTIONS | known
    if isinstance(n, ast.Subscript):  # `x[..., None]`
        return ast.unparse(n.slice) == "(..., None)"
    if isinstance(n, ast.Attribute):
        return (
            id(n) in called or n.attr in ("mT", "ops", "aten") or (isinstance(n.value, ast.Name) and n.value.id == "F")
        )
    if isinstance(n, ast.Name):
        return n.id in own | known | FUNCTIONS | {"torch", "F"}
    return not isinstance(n, (ast.Lambda, ast.ListComp, ast.GeneratorExp, ast.For, ast.While, ast.Starred))


def _from_the_last(n: ast.Call) -> bool:
    axes = n.args[:1] or [k.value for k in n.keywords if k.arg == "dim"]
    return bool(axes) and ast.unparse(axes[0]).startswith("-")


# `torch.bmm(a, b) - c` where nothing binds to it more tightly: with c of three axes it is one operation
DIFFERENCE = re.compile(r"(?:(?<== )|(?<=\()|(?<=, ))torch\.bmm\((\w+), (\w+(?:\.mT)?)\) - (\w+_G\w\w)(?=$|[,)])")


class Fold:
    """What stands around a loop whose pieces have rows and heads as one axis. done: whether they do."""

    def __init__(self, level: LevelCode) -> None:
        self.level, self.done = level, False

    def try_(self, head: int) -> None:
        """Give the piece whose text begins at line `head` one axis, where it does the same. Then products of what has
        three axes, as the names say, are `torch.bmm`: `@` would look at the axes each time, and tell autograd so."""
        level, lines = self.level, self.level.writer.lines
        if not self.fits():
            return
        (self.lead,) = level.stacks.leads.values()
        if not any_lead(lines[head:], level.writer.imports[STACK] | {self.lead}):
            return
        self.done = True
        one, stack = level.variable(f"{self.lead}_G"), next(iter(level.stacks.of.values()))
        for i in range(head, len(lines)):
            lines[i] = re.sub(rf"\b{self.lead}\b", one, re.sub(r"_BH(?=[A-Z0-9]*\b)", "_G", lines[i]))
            lines[i] = re.sub(r"(\w+_G\w\w) @ (\w+_G\w\w\b(?:\.mT)?)", r"torch.bmm(\1, \2)", lines[i])
            lines[i] = re.sub(DIFFERENCE, r"torch.baddbmm(\3, \1, \2, beta=-1)", lines[i])
        indent = lines[head][: len(lines[head]) - len(lines[head].lstrip())]
        lines.insert(head, f"{indent}{one} = ({stack}.shape[0],)  # rows and heads are one axis in the loop")

    def fits(self) -> bool:
        level, given = self.level, [n for n, name in self.level.given if name in {v for v, _ in self.level.splits}]
        (heads,) = found if len(found := {p.memory.heads for p in level.plan.looped}) == 1 else (None,)
        stacks = {*level.stacks.of.values(), *(chunk for chunk, _ in level.stacks.anchors())}
        alike = all(n.type.batch and n.type.heads == heads for n in (*given, *level.front))
        one = len(level.stacks.leads) == 1 and not level.abreast.wide
        return heads is not None and one and alike and set(level.state.passed) <= stacks

    def inputs(self) -> list[str]:
        """What the loop is given for every piece."""
        level, given = self.level, {name for _, name in self.level.given}
        if not self.done:
            return [text for _, text in level.splits]
        of = self.word("folded")
        return [
            re.sub(r"^(\w+)\.split", rf"{of}(\1, {self.lead}).split", text) if name in given else text
            for name, text in level.splits
        ]

    def into(self, names: list[str]) -> list[str]:
        """The state as the loop takes it."""
        if not self.done:
            return names
        stacks = set(self.level.stacks.of.values())
        return [x if x in stacks else f"{self.word('folded')}({x}, {self.lead})" for x in names]

    def out(self, names: list[str]) -> None:
        """Recalls and states as they were before."""
        stacks = set(self.level.stacks.of.values())
        for x in names if self.done else ():
            if x not in stacks:
                self.level.writer.line(f"{x} = {self.word('unfolded')}({x}, {self.lead})")

    def word(self, name: str) -> str:
        return self.level.writer.use(STACK, name)


__all__ = ["Fold", "any_lead"]
