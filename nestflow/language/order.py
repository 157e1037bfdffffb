"""One order of statements for both front ends.

YAML keeps declarations in sections, and .nl lets them stand anywhere; in a level and at the top order has no meaning
across kinds. So the tree has them sorted by kind, those of one kind in the order of the text, and equal specs are equal
trees. In flows and optimisers statements run from top to bottom and stay as they are.
"""

from __future__ import annotations

from dataclasses import replace

from nestflow.language import tree as T

_TOP: list[type[T.Statement]] = [
    T.Use,
    T.Extends,
    T.Param,
    T.Input,
    T.Clock,
    T.Extern,
    T.Execution,
    T.Field,
    T.Assign,
    T.Shared,
    T.Emit,
    T.Level,
    T.Flow,
    T.Optimizer,
    T.For,
    T.Repeat,
    T.If,
    T.MemoryPart,
    T.Return,
    T.Assert,
]
TOP_RANK = {cls: i for i, cls in enumerate(_TOP)}
LEVEL_RANK: dict[type[T.Statement], int] = {T.Assign: 0, T.Shared: 1, T.Emit: 2, T.Assert: 9}

Body = tuple[T.Statement, ...]


def ordered(spec: T.Spec) -> T.Spec:
    """The spec with its statements in the one order."""
    return replace(spec, body=top(spec.body))


def top(body: Body) -> Body:
    """Statements of the top of a file, or of a `for` or `if` there."""
    return tuple(sorted((_inside_top(s) for s in body), key=_top_rank))


def _top_rank(s: T.Statement) -> tuple[int, bool]:
    """`output` comes before fields that belong elsewhere: YAML has a key for it alone."""
    return TOP_RANK[type(s)], isinstance(s, T.Field) and s.name != "output"


def level(body: Body) -> Body:
    """Statements of a level, and of a `for`, `if` or memory in it."""
    return tuple(sorted((_inside_level(s) for s in body), key=lambda s: LEVEL_RANK.get(type(s), 5)))


def _inside_top(s: T.Statement) -> T.Statement:
    match s:
        case T.Level() | T.Execution() | T.MemoryPart():
            return replace(s, body=level(s.body))
        case T.For() | T.Repeat() | T.Extends():
            return replace(s, body=top(s.body))
        case T.If():
            return replace(s, body=top(s.body), otherwise=top(s.otherwise))
        case T.Flow() | T.Optimizer():
            return replace(s, body=tuple(_inside_flow(x) for x in s.body))
        case _:
            return s


def _inside_level(s: T.Statement) -> T.Statement:
    match s:
        case T.For() | T.Repeat() | T.MemoryPart():
            return replace(s, body=level(s.body))
        case T.If():
            return replace(s, body=level(s.body), otherwise=level(s.otherwise))
        case _:
            return s


def _inside_flow(s: T.Statement) -> T.Statement:
    """A memory of an optimiser is a mapping in YAML, so its own body is sorted like a level's."""
    match s:
        case T.MemoryPart():
            return replace(s, body=level(s.body))
        case T.For() | T.Repeat():
            return replace(s, body=tuple(_inside_flow(x) for x in s.body))
        case T.If():
            return replace(
                s, body=tuple(_inside_flow(x) for x in s.body), otherwise=tuple(_inside_flow(x) for x in s.otherwise)
            )
        case _:
            return s
