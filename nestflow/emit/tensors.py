"""Tensor expressions of an update rule as torch code, in torch.optim's order of operations.

The order follows from structure alone: c·a/b inside a sum is `addcdiv`, c·a·b `addcmul`, a + c·b `add(b, alpha=c)`,
r·a + (1 − r)·b and a + r·(b − a) are `lerp`, and all numbers beside a tensor are one double that is computed first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from nestflow.diagnostics.core import fail
from nestflow.emit.numbers import ATOM, CONDITION, OR, POWER, PRODUCT, SIGN, SUM, Text, is_number, literal, number
from nestflow.emit.rules.matrices import WRITERS
from nestflow.ir.node import Node, depends, walk
from nestflow.ir.ops import COMPARE, is_const

VIEWS = frozenset(["transpose", "as_matrix", "like_w", "diagonal", "stop"])
LONG = 44  # an operand of a product of matrices that is longer has a name of its own
_METHODS = {
    "sqrt": "sqrt",
    "exp": "exp",
    "log": "log",
    "abs": "abs",
    "sign": "sign",
    "square": "square",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
}
_FUNCTIONS = {
    "silu": "silu({0})",
    "gelu": "gelu({0})",
    "gelu_tanh": 'gelu({0}, approximate="tanh")',
    "softplus": "softplus({0})",
    "log_sigmoid": "logsigmoid({0})",
}
_SIGNS = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_NAMES = {"newton_schulz": "o", "sqrt": "root", "norm_w": "size", "norm_all": "norm", "total": "sum_all", "matmul": "z"}


@dataclass
class Product:
    """sign · Π scalars / Π divisors · Π tensors / Π below. corrections: divisors that come from `debias`."""

    sign: int = 1
    scalars: list[Text] = field(default_factory=list)
    divisors: list[Text] = field(default_factory=list)
    tensors: list[Node] = field(default_factory=list)
    below: list[Node] = field(default_factory=list)
    corrections: int = 0

    @property
    def plain(self) -> bool:
        """Nothing but tensors: the number beside them is 1."""
        return self.sign > 0 and not self.scalars and not self.divisors

    def factor(self, positive: bool = False) -> Text:
        """The number beside the tensors; `positive` leaves the sign away."""
        sign = "-" if self.sign < 0 and not positive else ""
        if not self.scalars and not self.divisors:
            return Text(f"{sign}1", SIGN if sign else ATOM)
        if len(self.scalars) == 1 and not self.divisors:
            only = self.scalars[0]
            return Text(f"-{only.at(SIGN)}", SIGN) if sign else only
        first = sign + (self.scalars[0].at(POWER if sign else PRODUCT) if self.scalars else "1")
        text = " * ".join([first] + [s.at(SIGN) for s in self.scalars[1:]])
        return Text(text + "".join(f" / {d.at(SIGN)}" for d in self.divisors), PRODUCT)


class Tensors:
    """Expressions over g, w and memories. `line` takes statements that must come first; `name` makes variable names."""

    def __init__(
        self,
        line: Callable[[str], None],
        name: Callable[[str], str],
        leaf: Callable[[Node], Text],
        kept: Callable[[Node], Text],
        indent: Callable[[int], None],
    ) -> None:
        self.line, self.name, self.number_leaf, self.kept, self.indent = line, name, leaf, kept, indent
        self.bound: dict[Node, str] = {}  # values that already have a variable
        self.uses: Counter[Node] = Counter()
        self.helpers: set[str] = set()  # functions of nestflow.ops.rules
        self.needs_math = False
        self.collective = False

    # --- shared values ---------------------------------------------------------------------------------

    def count(self, *roots: Node) -> None:
        """Note who uses what, so that a value used twice gets a variable."""
        for root in roots:
            self.uses[root] += 1
        for node in walk(*roots):
            self.uses.update(node.args)

    def forget(self, test: Callable[[Node], bool]) -> None:
        """Drop the variables of values that have changed."""
        self.bound = {n: v for n, v in self.bound.items() if not depends(n, test)}

    def forget_views(self, leaf: Callable[[Node], bool]) -> None:
        """Drop the variables that look into a tensor which has changed in place: its transpose, its rows × cols."""

        def looks(n: Node) -> bool:
            while n.op in VIEWS:
                n = n.args[0]
            return leaf(n)

        self.bound = {n: v for n, v in self.bound.items() if n.op not in VIEWS or not looks(n)}

    def _shared(self, node: Node) -> bool:
        return self.uses[node] > 1 and bool(node.args) and not is_number(node) and not self._cheap(node)

    def _cheap(self, node: Node) -> bool:
        """A leaf, perhaps times a number: written out again at every use."""
        if node.op == "debias" or not node.args:
            return True
        return (
            node.op in ("neg", "mul", "div")
            and sum(not is_number(a) for a in node.args) == 1
            and all(is_number(a) or self._cheap(a) for a in node.args)
            and not (node.op == "div" and is_number(node.args[0]))
        )

    def bind(self, node: Node, expression: Text) -> str:
        """Give a value a variable."""
        variable = self.name(_NAMES.get(node.op, "u"))
        self.line(f"{variable} = {expression.text}")
        self.bound[node] = variable
        return variable

    # --- products --------------------------------------------------------------------------------------

    def number(self, node: Node) -> Text:
        text = number(node, self.number_leaf)
        self.needs_math |= "math." in text.text
        return text

    def product(self, node: Node, squares: bool = False) -> Product:
        """The value as a product. squares: x² is two tensors."""
        p = Product()
        self._gather(node, p, squares, top=True)
        return p

    def _gather(self, node: Node, p: Product, squares: bool, top: bool = False) -> None:
        if node in self.bound or (not top and self._shared(node)):
            p.tensors.append(node)
        elif is_number(node):
            if is_const(node) and not isinstance(node.value, bool) and node.value < 0:
                p.sign, node_text = -p.sign, literal(-node.value)
                if node.value != -1:
                    p.scalars.append(node_text)
            elif node.op in ("neg", "mul", "div"):
                self._gather_number(node, p, squares)
            else:
                p.scalars.append(self.number(node))
        elif node.op == "neg":
            p.sign = -p.sign
            self._gather(node.args[0], p, squares)
        elif node.op == "mul":
            self._gather(node.args[0], p, squares)
            self._gather(node.args[1], p, squares)
        elif node.op == "square" and squares:
            p.tensors += [node.args[0], node.args[0]]
        elif node.op == "div":
            self._gather(node.args[0], p, squares)
            if is_number(node.args[1]):
                p.divisors.append(self.number(node.args[1]))
            else:
                p.below.append(node.args[1])
        elif node.op == "debias" and is_number(node.args[1]):
            p.tensors.append(node.args[0])
            p.divisors.append(self.kept(node))
            p.corrections += 1
        else:
            p.tensors.append(node)

    def _gather_number(self, node: Node, p: Product, squares: bool) -> None:
        if node.op == "neg":
            p.sign = -p.sign
            self._gather(node.args[0], p, squares)
        elif node.op == "mul":
            self._gather(node.args[0], p, squares)
            self._gather(node.args[1], p, squares)
        else:
            self._gather(node.args[0], p, squares)
            p.divisors.append(self.number(node.args[1]))

    # --- expressions -----------------------------------------------------------------------------------

    def text(self, node: Node) -> Text:
        """The value as an expression; a value used more than once is given a variable first."""
        if node in self.bound:
            return Text(self.bound[node])
        if is_number(node):
            return self.number(node)
        if self._shared(node):
            return Text(self.bind(node, self._write(node)))
        return self._write(node)

    def _write(self, node: Node) -> Text:
        op, args = node.op, node.args
        writer = getattr(self, f"_write_{op}", None)
        if writer is not None:
            return writer(node)
        if op in ("neg", "mul", "div", "debias"):
            return self._write_product(node)
        if op in COMPARE:
            return Text(f"{self.text(args[0]).at(SUM)} {_SIGNS[op]} {self.text(args[1]).at(SUM)}", OR)
        if op in ("and", "or"):
            sign = "&" if op == "and" else "|"
            return Text(f"({self.text(args[0]).at(ATOM)} {sign} {self.text(args[1]).at(ATOM)})")
        if op == "not":
            return Text(f"~{self.text(args[0]).at(ATOM)}", SIGN)
        if op in _METHODS:
            return Text(f"{self.text(args[0]).at(ATOM)}.{_METHODS[op]}()", ATOM, True)
        if op in _FUNCTIONS:
            return Text("torch.nn.functional." + _FUNCTIONS[op].format(self.text(args[0]).text), ATOM, True)
        if op == "norm_w":
            return Text(f"{self.helper('norm_of')}({self.text(args[0]).text}, fact.heads)", ATOM, True)
        if op in WRITERS:
            return WRITERS[op](self, node)
        message = f"`{op.rstrip('_')}` cannot stand in an update rule on the step clock"
        raise fail(
            "NF547", message, node.span, "update rules are made of g, w, memories, numbers and elementwise functions"
        )

    def helper(self, name: str) -> str:
        self.helpers.add(name)
        return name

    def _write_product(self, node: Node) -> Text:
        if node.op == "debias" and not is_number(node.args[1]):
            return Text(f"{self.text(node.args[0]).at(PRODUCT)} / {self.kept(node).at(POWER)}", PRODUCT, True)
        p = self.product(node)
        if not p.tensors:
            base = Text(f"{p.factor().at(PRODUCT)} / {self.text(p.below[0]).at(SIGN)}", PRODUCT, True)
            return self._times(base, Product(), p.below[1:])
        first = self.text(p.tensors[0])
        rest = [self.text(x).at(SIGN) for x in p.tensors[1:]]
        base = Text(" * ".join([first.at(PRODUCT), *rest]), PRODUCT, True) if rest else first
        return self._times(base, p, p.below)

    def _times(self, base: Text, p: Product, below: list[Node]) -> Text:
        for x in below:
            base = Text(f"{base.at(PRODUCT)} / {self.text(x).at(SIGN)}", PRODUCT, True)
        if p.plain:
            return base
        if p.sign > 0 and not p.scalars and len(p.divisors) == 1:  # torch divides by a bias correction
            return Text(f"{base.at(PRODUCT)} / {p.divisors[0].at(SIGN)}", PRODUCT, True)
        if p.sign < 0 and not p.scalars and not p.divisors:
            return Text(f"-{base.at(SIGN)}", SIGN, True)
        return Text(f"{base.at(PRODUCT)} * {p.factor().at(POWER)}", PRODUCT, True)

    def _write_sqrt(self, node: Node) -> Text:
        p = self.product(node.args[0])
        if (
            p.corrections == 1
            and len(p.divisors) == 1
            and p.sign > 0
            and not p.scalars
            and len(p.tensors) == 1
            and not p.below
        ):
            root = f"{self.text(p.tensors[0]).at(ATOM)}.sqrt()"
            return Text(f"{root} / {p.divisors[0].at(ATOM)} ** 0.5", PRODUCT, True)
        return Text(f"{self.text(node.args[0]).at(ATOM)}.sqrt()", ATOM, True)

    def _write_add(self, node: Node) -> Text:
        a, b = node.args
        mixed = lerp(node)
        if mixed is not None and is_number(mixed[2]):
            start, end, rate = mixed
            return Text(
                f"{self.text(start).at(ATOM)}.lerp({self.text(end).text}, {self.number(rate).text})", ATOM, True
            )
        if is_number(a):
            a, b = b, a
        if is_number(b):
            return self._plus(self.text(a), self.number(b))
        if not self._whole(a) and self._whole(b):
            a, b = b, a
        return self._plus_scaled(self.text(a), b)

    def _whole(self, node: Node) -> bool:
        return node in self.bound or self.product(node).plain

    def _plus(self, base: Text, n: Text) -> Text:
        if base.fresh:
            return Text(f"{base.at(ATOM)}.add_({n.text})", ATOM, True)
        return Text(f"{base.at(SUM)} + {n.at(PRODUCT)}", SUM, True)

    def _plus_scaled(self, base: Text, b: Node, negative: bool = False) -> Text:
        """base ± b, where the number beside b goes into `alpha`."""
        if b in self.bound or self._shared(b):
            return Text(f"{base.at(SUM)} {'-' if negative else '+'} {self.text(b).at(PRODUCT)}", SUM, True)
        p = self.product(b)
        sign = "-" if negative != (p.sign < 0) else "+"
        if not p.tensors or (not p.scalars and not p.divisors):
            other = self._bare(p) if p.tensors else self.text(b)
            sign = sign if p.tensors else "-" if negative else "+"
            return Text(f"{base.at(SUM)} {sign} {other.at(PRODUCT)}", SUM, True)
        method = ("add" if sign == "+" else "sub") + ("_" if base.fresh else "")
        return Text(f"{base.at(ATOM)}.{method}({self._bare(p).text}, alpha={p.factor(positive=True).text})", ATOM, True)

    def _bare(self, p: Product) -> Text:
        """The tensors of a product without the number."""
        first = self.text(p.tensors[0])
        rest = [self.text(x).at(SIGN) for x in p.tensors[1:]]
        return self._times(
            Text(" * ".join([first.at(PRODUCT), *rest]), PRODUCT, True) if rest else first, Product(), p.below
        )

    def _write_sub(self, node: Node) -> Text:
        a, b = node.args
        if is_number(b):
            return Text(f"{self.text(a).at(SUM)} - {self.number(b).at(PRODUCT)}", SUM, True)
        if is_number(a):
            return Text(f"{self.number(a).at(SUM)} - {self.text(b).at(PRODUCT)}", SUM, True)
        return self._plus_scaled(self.text(a), b, negative=True)

    def _write_pow(self, node: Node) -> Text:
        return Text(f"{self.text(node.args[0]).at(ATOM)} ** {self.text(node.args[1]).at(POWER)}", POWER, True)

    def _bound_by(self, node: Node, side: str) -> Text:
        a, b = node.args
        if is_number(a):
            a, b = b, a
        if is_number(b):
            return Text(f"{self.text(a).at(ATOM)}.clamp({side}={self.number(b).text})", ATOM, True)
        return Text(f"torch.{node.op}imum({self.text(a).text}, {self.text(b).text})", ATOM, True)

    def _write_min(self, node: Node) -> Text:
        return self._bound_by(node, "max")

    def _write_max(self, node: Node) -> Text:
        return self._bound_by(node, "min")

    def _write_where(self, node: Node) -> Text:
        c, a, b = node.args
        if is_number(c):
            if all(n.op in ("const", "fact") for n in walk(c) if not n.args):
                return self._chosen(node)
            return Text(
                f"{self.text(a).at(OR)} if {self.number(c).at(OR)} else {self.text(b).at(CONDITION)}", CONDITION
            )
        return Text(f"torch.where({self.text(c).text}, {self.text(a).text}, {self.text(b).text})", ATOM, True)

    def _chosen(self, node: Node) -> Text:
        """A choice by what w is: what the other branch asks of w may not be there, so only one is computed."""
        c, *branches = node.args
        variable, outside = self.name("u"), self.bound
        for line, value in zip((f"if {self.number(c).text}:", "else:"), branches, strict=True):
            self.line(line)
            self.indent(4)
            self.bound = dict(outside)
            self.line(f"{variable} = {self.text(value).text}")
            self.indent(-4)
        self.bound = outside
        self.bound[node] = variable
        return Text(variable)

    def brief(self, node: Node) -> Text:
        """The value as a short expression: a long one is given a variable."""
        text = self.text(node)
        return text if len(text.text) <= LONG or node in self.bound else Text(self.bind(node, text))

    def _write_matmul(self, node: Node) -> Text:
        return Text(f"{self.brief(node.args[0]).at(PRODUCT)} @ {self.brief(node.args[1]).at(SIGN)}", PRODUCT, True)

    def _write_transpose(self, node: Node) -> Text:
        return Text(f"{self.text(node.args[0]).at(ATOM)}.mT")

    def _write_stop(self, node: Node) -> Text:
        return self.text(node.args[0])

    def _write_fill(self, node: Node) -> Text:
        return Text(f"torch.{node['kind']}_like(w)", ATOM, True)

    def _write_py(self, node: Node) -> Text:
        parts = [self.text(a).text if not is_number(a) else self.number(a).text for a in node.args]
        text = ", ".join([repr(node["target"]), repr(node["form"]), "fact.heads", *parts])
        return Text(f"{self.helper('python_step')}({text})")

    def _write_newton_schulz(self, node: Node) -> Text:
        defaults = {"iters": 5, "coefficients": (3.4445, -4.7750, 2.0315), "eps": 1e-7}
        extra = "".join(f", {k}={node.get(k)!r}" for k, v in defaults.items() if node.get(k, v) not in (v, None))
        dtype = node.get("dtype")
        if dtype not in (None, "none", "bfloat16", "float16", "float32", "float64"):
            raise fail(
                "NF547", f"`{dtype}` is no dtype of `newton_schulz`", node.span, "`bfloat16` is that of torch's Muon"
            )
        if dtype not in (None, "none"):
            extra += f", dtype=torch.{dtype}"
        return Text(
            f"{self.helper('newton_schulz_of')}({self.text(node.args[0]).text}{extra}, heads=fact.heads)"
        )  # below rank 2 its argument: not fresh

    def _everywhere(self, node: Node, function: str) -> Text:
        self.collective = True
        argument = self.text(node.args[0])
        variable = self.name(_NAMES[node.op])
        self.line(f"{variable} = yield {self.helper(function)}, {argument.text}")
        self.bound[node] = variable
        return Text(variable)

    def _write_norm_all(self, node: Node) -> Text:
        return self._everywhere(node, "norm_of_all")

    def _write_total(self, node: Node) -> Text:
        return self._everywhere(node, "sum_of_all")


def lerp(node: Node) -> tuple[Node, Node, Node] | None:
    """(start, end, rate) if the sum is start + rate·(end − start) or (1 − rate)·start + rate·end."""
    a, b = node.args
    for start, other in ((a, b), (b, a)):
        if other.op == "mul":
            for rate, gap in (other.args, other.args[::-1]):
                if gap.op == "sub" and gap.args[1] is start and not is_number(start):
                    return start, gap.args[0], rate
    if a.op == "mul" and b.op == "mul":
        for keep, start in (a.args, a.args[::-1]):
            for rate, end in (b.args, b.args[::-1]):
                if (
                    is_number(keep)
                    and is_number(rate)
                    and not is_number(start)
                    and not is_number(end)
                    and complement(keep, rate)
                ):
                    return start, end, rate
    return None


def complement(keep: Node, rate: Node) -> bool:
    """Whether rate is written as 1 − keep, or keep as 1 − rate."""
    for x, y in ((keep, rate), (rate, keep)):
        if y.op == "sub" and is_const(y.args[0], 1) and y.args[1] is x:
            return True
    return is_const(keep) and is_const(rate) and (rate.value == 1 - keep.value or keep.value == 1 - rate.value)
