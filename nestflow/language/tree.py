"""The syntax tree that both front ends produce, and the printers read.

Every node carries the span of the text it came from; spans do not take part in equality, so two trees
are equal when they say the same thing. Trees are frozen. Names are not resolved here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nestflow.diagnostics.core import Source, Span


@dataclass(frozen=True)
class Node:
    span: Span | None = field(default=None, compare=False, repr=False, kw_only=True)


# --- expressions -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number(Node):
    """`3`, `1_000`, `3e-4`; an int where it is written without point or exponent. `text` keeps how it was written."""

    value: int | float
    text: str = field(default="", compare=False)


@dataclass(frozen=True)
class String(Node):
    value: str


@dataclass(frozen=True)
class Name(Node):
    """A plain name. `true` and `false` are Bool, not Name. May contain `{p}` of a loop variable."""

    name: str


@dataclass(frozen=True)
class Bool(Node):
    value: bool


@dataclass(frozen=True)
class Call(Node):
    function: Expr
    args: tuple[Expr, ...] = ()
    kwargs: tuple[tuple[str, Expr], ...] = ()


@dataclass(frozen=True)
class Pipe(Node):
    """`a |> f(b) |> g`: stages[0] is the start, the others are functions or calls."""

    stages: tuple[Expr, ...]


@dataclass(frozen=True)
class Unary(Node):
    """op is `-` or `not`."""

    op: str
    operand: Expr


@dataclass(frozen=True)
class Binary(Node):
    """op is one of `+ - * / // % @ ^ and or == != < <= > >=`."""

    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True)
class Conditional(Node):
    """`then if condition else otherwise`."""

    then: Expr
    condition: Expr
    otherwise: Expr


@dataclass(frozen=True)
class Attribute(Node):
    """`a.name`."""

    value: Expr
    name: str


@dataclass(frozen=True)
class Slice(Node):
    """`i:j` inside an index; either end may be missing."""

    start: Expr | None
    stop: Expr | None


@dataclass(frozen=True)
class Index(Node):
    """`a[i, j:k]`; also `int[T, 64]` where a type is written."""

    value: Expr
    items: tuple[Expr | Slice, ...]


@dataclass(frozen=True)
class ListExpr(Node):
    items: tuple[Expr, ...]


@dataclass(frozen=True)
class Record(Node):
    entries: tuple[tuple[str, Expr], ...]


Expr = (
    Number | String | Name | Bool | Call | Pipe | Unary | Binary | Conditional | Attribute | Index | ListExpr | Record
)


# --- small parts -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Domain(Node):
    """`[1, 65536]`, `[0, vocab)`: interval with open or closed ends; or `{a, b}`: a set (values)."""

    low: Expr | None = None
    high: Expr | None = None
    low_open: bool = False
    high_open: bool = False
    values: tuple[Expr, ...] | None = None


@dataclass(frozen=True)
class TypeExpr(Node):
    """`int[T] in [0, vocab)`; name is int, float, bool (checked later)."""

    name: str
    dims: tuple[Expr, ...] = ()
    domain: Domain | None = None


@dataclass(frozen=True)
class Slot(Node):
    """One slot of a template: `x`, `width = 64`, `q : float[64]`."""

    name: str
    default: Expr | None = None
    type: TypeExpr | None = None
    domain: Domain | None = None


# --- statements ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statement(Node):
    """`doc` is the text of the `##` comments that belong to the statement (before it or at its line end).
    `comments` are plain `#` comment lines just above it, `trailing` the one at its end, `closing` those before the
    end of its body, `blank` an empty line above it: kept for printing."""

    doc: str | None = field(default=None, kw_only=True)
    comments: tuple[str, ...] = field(default=(), compare=False, kw_only=True)
    trailing: str | None = field(default=None, compare=False, kw_only=True)
    closing: tuple[str, ...] = field(default=(), compare=False, repr=False, kw_only=True)
    blank: bool = field(default=False, compare=False, repr=False, kw_only=True)


@dataclass(frozen=True)
class Assign(Statement):
    """`a = e`; `r, s = e` unpacks."""

    names: tuple[str, ...]
    value: Expr


@dataclass(frozen=True)
class Shared(Statement):
    """`shared emb = embed(vocab, dim)`."""

    name: str
    value: Expr


@dataclass(frozen=True)
class Field(Statement):
    """`every 4 updates of fast`: value Number(4), unit "updates", of "fast".

    Any `NAME expr` statement: `key x |> linear`, `step -lr * g`, `set e`, `eval e`.
    """

    name: str
    value: Expr
    unit: str | None = None
    of: str | None = None
    name_span: Span | None = field(default=None, compare=False, repr=False)
    unit_span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class MemoryPart(Statement):
    """`memory keys : mlp(depth = 2) { key k; value m(v) }`."""

    name: str
    kind: Expr
    body: tuple[Statement, ...]


@dataclass(frozen=True)
class Return(Statement):
    value: Expr


@dataclass(frozen=True)
class Emit(Statement):
    name: str
    value: Expr


@dataclass(frozen=True)
class For(Statement):
    """`for m in [keys, values] { ... }`."""

    variable: str
    items: Expr
    body: tuple[Statement, ...]


@dataclass(frozen=True)
class Repeat(Statement):
    """`repeat depth as i { ... }`."""

    count: Expr
    variable: str | None
    body: tuple[Statement, ...]


@dataclass(frozen=True)
class If(Statement):
    """`if c { ... } else { ... }`; `else if` is an If alone in otherwise."""

    condition: Expr
    body: tuple[Statement, ...]
    otherwise: tuple[Statement, ...] = ()


@dataclass(frozen=True)
class Use(Statement):
    """`use a`, `use b of "my.nl" as c`. target: dotted path or file; is_file tells which."""

    target: str
    chosen: str | None = None
    alias: str | None = None
    is_file: bool = False


@dataclass(frozen=True)
class Param(Statement):
    name: str
    default: Expr
    type: TypeExpr | None = None
    domain: Domain | None = None


@dataclass(frozen=True)
class Input(Statement):
    """`input clean.x : float[32]`; name keeps its dots."""

    name: str
    type: TypeExpr


@dataclass(frozen=True)
class Clock(Statement):
    """`clock task`; `clock round = 500 steps`."""

    name: str
    count: Expr | None = None
    unit: str | None = None


@dataclass(frozen=True)
class Extern(Statement):
    name: str
    slots: tuple[Slot, ...] | None = None
    type: TypeExpr | None = None


@dataclass(frozen=True)
class Extends(Statement):
    target: str
    body: tuple[Statement, ...]
    is_file: bool = False


@dataclass(frozen=True)
class Template(Statement):
    """level, flow or optimizer: a name, slots (None: written without brackets), a body."""

    name: str
    slots: tuple[Slot, ...] | None
    body: tuple[Statement, ...]
    name_span: Span | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Level(Template):
    pass


@dataclass(frozen=True)
class Flow(Template):
    pass


@dataclass(frozen=True)
class Optimizer(Template):
    pass


@dataclass(frozen=True)
class Execution(Statement):
    body: tuple[Statement, ...]


@dataclass(frozen=True)
class Assert(Statement):
    condition: Expr
    message: str | None = None


@dataclass(frozen=True)
class Spec:
    """One file. The `output e` line is a Field named "output". `header_comments`: `#` lines above `nestflow 1`."""

    version: int
    body: tuple[Statement, ...]
    source: Source = field(compare=False, repr=False)
    doc: str | None = None
    header_comments: tuple[str, ...] = field(default=(), compare=False)
    footer_comments: tuple[str, ...] = field(default=(), compare=False)
