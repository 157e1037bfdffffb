"""IR nodes to readable Python: the expressions and statements inside generated functions.

A value lies as [B, H, T, *features], each carried axis present only if the node's type has it (batch, heads, clock);
constants are Python numbers. Operands are aligned by explicit indexing, so that the same text works on a whole
sequence, on one chunk (T is then the chunk's length) and on one token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping

from nestflow.diagnostics.core import fail
from nestflow.emit.layout import ABREAST, Letters
from nestflow.emit.operand import ATOM, Expr
from nestflow.emit.ops import CHEAP, OPERATIONS
from nestflow.emit.records import SPECIAL, is_record
from nestflow.emit.writer import Writer, identifier
from nestflow.graph.model import Instance
from nestflow.ir.node import Node, Type

WIDE = 84  # a longer expression gets a name of its own

_BASES = {
    "linear": "h",
    "embed": "x",
    "rmsnorm": "n",
    "l2norm": "n",
    "layernorm": "n",
    "softmax": "p",
    "matmul": "z",
    "short_conv": "conv",
    "previous": "prev",
    "window": "last",
    "rope": "r",
    "merge_heads": "y",
    "split_heads": "s",
    "position": "t",
}


class Emitter:
    """Turns nodes into statements of one function body.

    writer: takes the statements. bindings: nodes that already have a variable (or an expression). instance: whose
    body this is (children of calls, names of the text). roots: what will be asked for, to count uses: a node used
    once may stand inside its user. ticks, batch, t0: expressions for the number of ticks, of rows, and of ticks
    before the first one. special: asked first for every node; an expression, or None to go on.
    prefix: the variable that holds the instance's path. reuse: a name of the text may be assigned again once its
    old value is dead (needs complete roots).
    """

    def __init__(
        self,
        writer: Writer,
        bindings: Mapping[Node, str] | None = None,
        *,
        instance: Instance | None = None,
        roots: Iterable[Node] = (),
        names: Iterable[tuple[str, Node]] | None = None,
        letters: Letters | None = None,
        ticks: str = "T",
        batch: str = "B",
        t0: str = "c.t0",
        prefix: str = "p",
        tick_letter: str = "T",
        special: Callable[[Node], str | None] | None = None,
        reuse: bool = False,
    ) -> None:
        self.writer, self.instance, self.special, self.reuse = writer, instance, special, reuse
        self.ticks, self.batch, self.t0, self.prefix, self.tick_letter = ticks, batch, t0, prefix, tick_letter
        self.wide = WIDE
        self.sequence = t0  # ticks of the sequence before the first one
        self.letters = letters or Letters()
        self.tails: dict[
            str, str
        ] = {}  # variables with the last inputs of blocks that look back, in a loop over pieces
        self.done: dict[Node, Expr] = {}
        self.uses: Counter[Node] = Counter()
        self.counted: set[Node] = set()
        self.copies: frozenset[str] = frozenset()  # levels without slots that have a copy for each row here
        self.workers: dict[str, int] = {}  # those that have a copy for each part of the rows: in how many parts
        self.published: dict[Node, str] = {}  # call of a root flow -> the variable with what it published
        self.holder: dict[str, Node | None] = {}  # variable -> the node it holds
        self.abreast: Container[Node] = ()  # nodes with an axis for several memories in front
        self.names: dict[Node, str] = {}
        for name, node in names if names is not None else instance.names if instance else ():
            self.names.setdefault(node, name)
        for node, name in (bindings or {}).items():
            self.bind(node, name)
        self.plan(*roots)

    def bind(self, node: Node, name: str) -> None:
        """Say that a variable (or atomic expression) holds the node's value."""
        self.done[node] = Expr(name, ATOM, (node,))
        self.holder[name] = node

    def plan(self, *roots: Node) -> None:
        """Count the uses of all nodes below the roots; to be called before `value` for roots that share parts."""
        for root in roots:
            self.uses[root] += 1
            stack = [root]
            while stack:
                node = stack.pop()
                if node in self.counted or node in self.done:
                    continue
                self.counted.add(node)
                self.uses.update(node.args)
                stack.extend(node.args)

    def value(self, node: Node) -> str:
        """Emit what the node needs; a variable, a number or a short expression, safe to stand as an argument."""
        return self.expression(node).text

    def atom(self, node: Node) -> str:
        """Like `value`, in brackets where it is an operation: safe to index, call a method of, or multiply."""
        return self.expression(node).atom

    def expression(self, node: Node) -> Expr:
        if node not in self.counted:
            self.plan(node)
        stack = [node]
        while stack:
            n = stack[-1]
            if n in self.done:
                stack.pop()
                continue
            text = self.special(n) if self.special else None
            if text is not None:
                self.done[n] = Expr(text, ATOM)
                continue
            missing = [a for a in n.args if a not in self.done]
            if missing:
                stack.extend(reversed(missing))
                continue
            stack.pop()
            self._make(n)
        return self.done[node]

    def variable(self, node: Node, base: str | None = None) -> str:
        """Like `value`, but always the name of a variable."""
        e = self.expression(node)
        if e.text.isidentifier():
            return e.text
        return self.assign(node, e, base)

    def assign(self, node: Node, e: Expr, base: str | None = None, targets: str = "") -> str:
        """Emit `name = expression` and let name hold the node. targets: more to assign to (", c.n[...]")."""
        for read in e.reads:
            self.uses[read] -= 1
        lead = ABREAST if node in self.abreast else ""
        name = self.fresh(base or self.names.get(node) or _BASES.get(node.op, "h"), node.type, lead)
        self.writer.line(f"{name}{targets} = {e.text}")
        self.bind(node, name)
        return name

    def fresh(self, base: str, t: Type, lead: str = "") -> str:
        """A new variable with a shape suffix; the name of a dead value is taken again where `reuse` allows it. lead: an
        axis in front of those of the type."""
        stem, suffix, n = identifier(base).rstrip("_") or "x", self.letters.suffix(t, self.tick_letter, lead), 1
        name = identifier(stem + suffix)
        while (name in self.holder and not (self.reuse and self._dead(name))) or name in self.writer._taken:
            n += 1
            name = f"{stem}{n}{suffix}" if not stem[-1].isdigit() else f"{stem}_{n}{suffix}"
        return name

    def _dead(self, name: str) -> bool:
        node = self.holder[name]
        return node is not None and self.uses[node] <= 0

    def _make(self, node: Node) -> None:
        emit = OPERATIONS.get(node.op)
        if emit is None:
            raise fail("NF490", f"`{node.op}` here is not built yet", node.span, "`ROADMAP.md` says what is to come")
        if node.op in SPECIAL and is_record(node):
            emit = SPECIAL[node.op]
        e: Expr = emit(self, node)
        if node in self.done:  # an operation with several results has assigned itself
            return
        single = self.uses[node] <= 1 and node not in self.names and len(e.text) <= self.wide
        if (node.op in CHEAP and single) or (not node.args and node.op not in ("position",)):
            self.done[node] = e
        else:
            self.assign(node, e)


__all__ = ["ATOM", "Emitter", "Expr", "Letters"]
