"""The loop over pieces: what a piece asks of the ticks before it, and the call that runs all of them in turn.

Where there is one token, there is no loop: the piece stands in the level's function."""

from __future__ import annotations

import ast
import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nestflow.emit.layout import tick_axis
from nestflow.emit.levels.facts import packed
from nestflow.ir.node import Node

if TYPE_CHECKING:
    from nestflow.emit.expr import Emitter
    from nestflow.emit.levels.level import LevelCode


def period_of(lines: list[str]) -> int:
    """The smallest number such that the lines of a piece see `t` only modulo it: 1 if they do not ask, 0 if they ask
    for `t` itself. Pieces that look alike may then run as one compiled function."""
    tree = ast.parse(textwrap.dedent("\n".join(lines)))
    moduli, used = [1], 0
    for n in ast.walk(tree):
        if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Mod) and isinstance(n.right, ast.Constant):
            inside = sum(1 for _ in _uses(n.left))
            if inside and isinstance(n.right.value, int) and _is_sum(n.left):
                moduli.append(n.right.value)
                used += inside
    return math.lcm(*moduli) if used == sum(1 for _ in _uses(tree)) else 0


def trimmed(lines: list[str], head: int, body: int, inputs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The inputs of a piece that it uses. Its first lines, from `head` to `body`, give parts of its state a name:
    those that nothing uses are dropped."""
    used = set(re.findall(r"[^\W\d]\w*", "\n".join(lines[body:])))
    for i in range(body - 1, head, -1):
        name, sign, value = lines[i].strip().partition(" = ")
        if sign and name.isidentifier() and name not in used:
            del lines[i]
        else:
            used |= set(re.findall(r"[^\W\d]\w*", value or lines[i]))
    return [(name, text) for name, text in inputs if name in used]


def _uses(tree: ast.AST) -> Iterator[ast.Name]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == "t" and isinstance(n.ctx, ast.Load))


def _is_sum(n: ast.expr) -> bool:
    """`t`, or `t + n`."""
    if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Add):
        return _is_sum(n.left) and _is_sum(n.right)
    return isinstance(n, ast.Name) and n.id in ("t", "n")


def run_pieces(level: LevelCode, function: str, period: int) -> None:
    """The call that gives the state after all pieces, and what was recalled at every tick."""
    loop = level.writer.use("nestflow.ops.loop", "in_turn")
    results, state, fold = [], level.state.variables, level.fold
    for n in level.front:
        results.append(level.outer.fresh("y" if len(level.front) == 1 else n["memory"], n.type))
        level.outer.bind(n, results[-1])
    targets = f"{state if level.state.kept else '_'}, {packed(results)}"
    last = packed([str(tick_axis(n.type)) for n in level.front]) + f", period={period}"
    last += ", masked=True" if level.masked() else ""
    first = ", ".join(["c", function, level.t0, "sizes"])
    given, into = fold.inputs(), packed(fold.into(level.state.passed))
    level.stacks.lay_out(given)
    line = f"{targets} = {loop}({', '.join([first, into, packed(given), last])})"
    if len(line) > 110:
        splits = "".join(f"        {i},\n" for i in given)
        parts = [first, into, f"(\n{splits}    )" if splits else "()", last]
        line = f"{targets} = {loop}(\n" + "".join(f"    {x},\n" for x in parts) + ")"
    level.writer.line(line)
    fold.out([*(level.state.passed if level.state.kept else []), *results])


@contextmanager
def forgotten(em: Emitter) -> Iterator[None]:
    """What is evaluated inside, in one branch alone, has no variable behind it."""
    known = dict(em.done)
    yield
    if em.writer.one_token:
        em.done.clear()
        em.done.update(known)


def one_piece(level: LevelCode, roots: Sequence[Node]) -> None:
    """The only piece of a call with one token, its recalls and the state after it."""
    for node, e in level.outer.done.items():
        if level.at_need or e.text.isidentifier():
            level.inner.done.setdefault(node, e)
    level.inner.special = lambda n: level.special.text(n) or level.cache.special(n)
    level.writer.line(f"t, n = {level.t0}, 1")
    level.inner.plan(*roots)
    level.piece()
    for node, e in level.inner.done.items():
        level.outer.done.setdefault(node, e)
    level.outer.holder.update(level.inner.holder)
    for node, name in zip(level.front, level.recalled, strict=True):
        level.outer.bind(node, name)
