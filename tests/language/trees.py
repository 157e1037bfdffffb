"""Random specs for property tests: any tree that a text can say."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, TypeVar

from hypothesis import strategies as st

from nestflow.diagnostics.core import Source
from nestflow.language import order
from nestflow.language import tree as T

X = TypeVar("X")
SOURCE = Source("<made>", "")
WORDS = [
    "x",
    "y",
    "alpha",
    "tokens",
    "step",
    "level",
    "input",
    "memory",
    "flow",
    "use",
    "titans_2",
    "cms_{p}",
    "β",
    "no",
    "on",
    "null",
    "e5",
    "t1",
    "M",
    "is",
    "doc",
    "record",
    "return_",
    "y_",
    "nestflow",
    "every",
]
KEYS = ["a b", "if", "x.y", "8", "true", "key", "it's"]
STRINGS = ["", "a", "**.mlp.**", "a: b", "# c", "it's", "\u03b2 \u2192", "a  b", "{}", "];|>", "'", "\\n"]
NUMBERS = [
    T.Number(1000, "1_000"),
    T.Number(3e-4, "3e-4"),
    T.Number(0.5, "0.50"),
    T.Number(1.0, "1.0"),
    T.Number(0),
    T.Number(7),
    T.Number(10**12),
    T.Number(1e300),
    T.Number(1e-7),
    T.Number(0.1),
]
OPERATORS = ["+", "-", "*", "/", "//", "%", "@", "^", "and", "or", "==", "!=", "<", "<=", ">", ">="]
DOCS = [
    None,
    None,
    "a doc",
    "two\nlines",
    "3",
    "it's: a #doc",
    "- x",
    "# y",
    "ends:",
    "'q'",
    "null",
    "a\n\n  b",
    '"q"',
    "| x",
]
COMMENTS = ["c", "# c", "a: b", "last"]
FIELDS = ["key", "value", "every", "chunk", "memory", "objective", "update", "weight", "shared_", "is", "doc", "x"]


class Maker:
    """Makes trees from a source of chance."""

    def __init__(self, random: Random):
        self.random = random

    def one(self, options: list[X]) -> X:
        return options[self.random.randrange(len(options))]

    def some(self, make: Callable[[], X], most: int, least: int = 0) -> tuple[X, ...]:
        return tuple(make() for _ in range(self.random.randint(least, most)))

    def maybe(self, make: Callable[[], X]) -> X | None:
        return make() if self.random.random() < 0.4 else None

    def name(self) -> str:
        return self.one(WORDS)

    # --- expressions -------------------------------------------------------------------------------

    def expression(self, depth: int = 3) -> T.Expr:
        if depth == 0 or self.random.random() < 0.25:
            return self.one(
                [
                    lambda: T.Name(self.name()),
                    lambda: self.one(NUMBERS),
                    lambda: T.String(self.one(STRINGS)),
                    lambda: T.Bool(self.random.random() < 0.5),
                ]
            )()
        deeper = lambda: self.expression(depth - 1)  # noqa: E731
        return self.one(
            [
                lambda: self.call(depth),
                lambda: self.call(depth),
                lambda: T.Attribute(deeper(), self.name()),
                lambda: self.index(depth),
                lambda: T.Pipe((deeper(), *self.some(lambda: self.stage(depth), 3, 1))),
                lambda: T.Unary(self.one(["-", "not"]), deeper()),
                lambda: T.Binary(self.one(OPERATORS), deeper(), deeper()),
                lambda: T.Binary(self.one(OPERATORS), deeper(), deeper()),
                lambda: T.Conditional(deeper(), deeper(), deeper()),
                lambda: T.ListExpr(self.some(deeper, 3)),
                lambda: T.Record(
                    tuple({self.one(KEYS + WORDS): deeper() for _ in range(self.random.randint(0, 3))}.items())
                ),
            ]
        )()

    def call(self, depth: int) -> T.Expr:
        function = T.Name(self.name()) if self.random.random() < 0.8 else self.expression(depth - 1)
        kwargs = {self.name(): self.expression(depth - 1) for _ in range(self.random.randint(0, 2))}
        args = () if self.random.random() < 0.5 else self.some(lambda: self.expression(depth - 1), 2)
        return T.Call(function, args, tuple(kwargs.items()))

    def index(self, depth: int) -> T.Expr:
        deeper = lambda: self.expression(depth - 1)  # noqa: E731
        item = lambda: deeper() if self.random.random() < 0.6 else T.Slice(self.maybe(deeper), self.maybe(deeper))  # noqa: E731
        return T.Index(deeper(), self.some(item, 2, 1))

    def stage(self, depth: int) -> T.Expr:
        return self.one(
            [
                lambda: T.Name(self.name()),
                lambda: self.call(depth),
                lambda: self.index(depth),
                lambda: T.Attribute(T.Name(self.name()), self.name()),
            ]
        )()

    # --- parts -------------------------------------------------------------------------------------

    def domain(self) -> T.Domain:
        if self.random.random() < 0.3:
            return T.Domain(values=self.some(self.expression, 3, 1))
        return T.Domain(self.expression(2), self.expression(1), self.random.random() < 0.5, self.random.random() < 0.5)

    def type(self) -> T.TypeExpr:
        return T.TypeExpr(
            self.one(["int", "float", "bool"]), self.some(lambda: self.expression(1), 2), self.maybe(self.domain)
        )

    def slots(self) -> tuple[T.Slot, ...]:
        return tuple(self.slot(n) for n in {self.name() for _ in range(self.random.randint(0, 3))})

    def slot(self, name: str) -> T.Slot:
        type, default = self.maybe(self.type), self.maybe(lambda: self.expression(2))
        # where a type stands last, `in` belongs to it
        return T.Slot(name, default, type, None if type is not None and default is None else self.maybe(self.domain))

    def around(self) -> dict[str, Any]:
        return {
            "doc": self.one(DOCS),
            "comments": self.some(lambda: self.one(COMMENTS), 1),
            "blank": self.random.random() < 0.3,
            "trailing": self.maybe(lambda: self.one(COMMENTS)),
        }

    # --- statements --------------------------------------------------------------------------------

    def statement(self, depth: int = 2) -> T.Statement:
        if depth == 0 or self.random.random() < 0.6:
            return self.line()
        body = lambda: self.some(lambda: self.statement(depth - 1), 3)  # noqa: E731
        return self.one(
            [
                lambda: T.MemoryPart(self.name(), self.expression(), body(), **self.around()),
                lambda: T.For(self.name(), self.expression(), body(), **self.around()),
                lambda: T.Repeat(self.expression(), self.maybe(self.name), body(), **self.around()),
                lambda: T.If(self.expression(), body(), body(), **self.around()),
            ]
        )()

    def line(self) -> T.Statement:
        return self.one(
            [
                lambda: T.Assign(
                    tuple({self.name() for _ in range(self.random.randint(1, 2))}), self.expression(), **self.around()
                ),
                self.field,
                self.field,
                lambda: T.Return(self.expression(), **self.around()),
                lambda: T.Shared(self.name(), self.expression(), **self.around()),
                lambda: T.Emit(self.name(), self.expression(), **self.around()),
                lambda: T.Assert(self.expression(), self.maybe(lambda: self.one(["m", "a: b"])), **self.around()),
            ]
        )()

    def field(self) -> T.Statement:
        name = self.one(FIELDS)
        unit = self.maybe(lambda: self.one(["token", "steps"])) if name in ("every", "chunk", "x") else None
        of = self.maybe(lambda: self.one(["fast", "a.b"])) if unit else None
        return T.Field(name, self.expression(), unit, of, **self.around())

    def body(self) -> tuple[T.Statement, ...]:
        return self.some(self.statement, 4)

    def template(self) -> T.Statement:
        kind = self.one([T.Level, T.Flow, T.Optimizer])
        slots = self.slots() if kind is T.Flow else self.maybe(self.slots)
        return kind(self.name(), slots, self.body(), **self.around())

    def target(self) -> tuple[str, bool]:
        return self.one(
            [("adam", False), ("optimizers.adam", False), ("my.nl", True), ("a b/c.yaml", True), ("../x.yml", True)]
        )

    def use(self) -> T.Statement:
        target, is_file = self.target()
        return T.Use(target, self.maybe(self.name), self.maybe(self.name), is_file, **self.around())

    def extends(self) -> T.Statement:
        target, is_file = self.target()
        return T.Extends(target, self.some(self.template, 2), is_file, **self.around())

    def clock(self) -> T.Statement:
        count, unit = self.one([(None, None), (self.expression(2), "steps")])
        return T.Clock(self.name(), count, unit, **self.around())

    def top(self) -> T.Statement:
        return self.one(
            [
                self.use,
                self.extends,
                self.clock,
                self.template,
                self.template,
                self.statement,
                lambda: T.Param(
                    self.name(), self.expression(), self.maybe(self.type), self.maybe(self.domain), **self.around()
                ),
                lambda: T.Input(self.one(["tokens", "a.b"]), self.type(), **self.around()),
                lambda: T.Extern(self.name(), self.maybe(self.slots), self.maybe(self.type), **self.around()),
                lambda: T.Execution(self.body(), **self.around()),
            ]
        )()

    def spec(self) -> T.Spec:
        around = self.around()
        return order.ordered(
            T.Spec(1, self.some(self.top, 5), SOURCE, around["doc"], around["comments"], around["comments"])
        )


def seeds() -> st.SearchStrategy[Random]:
    return st.integers(0, 2**32).map(Random)


expressions = seeds().map(lambda r: Maker(r).expression(4))
specs = seeds().map(lambda r: Maker(r).spec())
