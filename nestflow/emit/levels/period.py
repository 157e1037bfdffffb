"""What the code of a piece asks of the number of ticks before it."""

from __future__ import annotations

import ast
import math
import textwrap
from collections.abc import Iterator


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


def _uses(tree: ast.AST) -> Iterator[ast.Name]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == "t" and isinstance(n.ctx, ast.Load))


def _is_sum(n: ast.expr) -> bool:
    """`t`, or `t + n`."""
    if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Add):
        return _is_sum(n.left) and _is_sum(n.right)
    return isinstance(n, ast.Name) and n.id in ("t", "n")
