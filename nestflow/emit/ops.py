"""How each operation of the IR is written in torch. One small function per operation: (emitter, node) -> Expr."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nestflow.emit.layout import axes, head_axis, index_to, tick_axis
from nestflow.ir.node import Node, Type

if TYPE_CHECKING:
    from nestflow.emit.expr import Emitter, Expr

Operation = Callable[["Emitter", Node], "Expr"]
BLOCKS, LOOKBACK = "nestflow.ops.blocks", "nestflow.ops.lookback"
ATOM = 100

_INFIX = {"add": ("+", 10), "sub": ("-", 10), "mul": ("*", 20), "div": ("/", 20), "floordiv": ("//", 20), "mod": ("%", 20),
          "pow": ("**", 40), "lt": ("<", 2), "le": ("<=", 2), "gt": (">", 2), "ge": (">=", 2), "eq": ("==", 2),
          "ne": ("!=", 2), "and": ("&", 2), "or": ("|", 2)}
_TRANSPARENT = frozenset("not neg sum mean amax inner stop where".split())  # of Python numbers they are Python numbers
_COMPARE = frozenset("lt le gt ge eq ne and or".split())
_CALLS = {"exp": "torch.exp({})", "log": "torch.log({})", "sqrt": "torch.sqrt({})", "abs": "torch.abs({})",
          "sign": "torch.sign({})", "square": "torch.square({})", "relu": "F.relu({})", "sigmoid": "torch.sigmoid({})",
          "tanh": "torch.tanh({})", "silu": "F.silu({})", "gelu": "F.gelu({})", "gelu_tanh": 'F.gelu({}, approximate="tanh")',
          "softplus": "F.softplus({})", "log_sigmoid": "F.logsigmoid({})"}
CHEAP = frozenset(_INFIX) | frozenset(_CALLS) | frozenset(
    "neg not elu1 inverse_softplus max min where sum mean amax inner transpose merge_heads split_heads spread stop index "
    "reshape linear embed softmax log_softmax l2norm rmsnorm layernorm next cross_entropy mean_all matmul outer concat "
    "stack rope sum_features newton_schulz call".split())


def _expr(text: str, precedence: int = ATOM, *parts: Expr) -> Expr:
    from nestflow.emit.expr import Expr

    return Expr(text, precedence, tuple(r for p in parts for r in p.reads))


def number(value: Any) -> str:
    """A Python literal of a constant."""
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)


def is_python(node: Node) -> bool:
    """Whether the value is a plain Python number or bool in the generated code, not a tensor."""
    return node.op in ("const", "training") or (
        bool(node.args) and (node.op in _INFIX or node.op in _TRANSPARENT) and all(is_python(a) for a in node.args))


def tensor(em: Emitter, node: Node, target: Type | None = None, features: int | None = None) -> Expr:
    """The operand as an atom or indexed atom, aligned with `target`; integers become floats where target is float."""
    e = em.done[node]
    if is_python(node):
        return e
    text = e.text
    changed = False
    if target is not None:
        index = index_to(node.type, target, features)
        if index:
            text, changed = e.atom + index, True
        if target.dtype == "float" and node.type.dtype != "float":
            text, changed = (text if changed else e.atom) + ".to(c.dtype)", True
        elif target.dtype == "int" and node.type.dtype == "bool":
            text, changed = (text if changed else e.atom) + ".long()", True
    return _expr(text, ATOM if changed else e.precedence, e)


def as_tensor(em: Emitter, node: Node) -> Expr:
    """Like the operand itself, but a Python number becomes a tensor without axes (which does not promote others)."""
    e = em.done[node]
    return _expr(f"torch.tensor(float({e.text}), dtype=torch.float64, device=c.device)") if is_python(node) else e


def _variable(em: Emitter, node: Node) -> Expr:
    """The operand as a name, for operations that write it twice."""
    e = as_tensor(em, node)
    if not is_python(node) and not e.text.isidentifier():
        em.assign(node, e)
        e = em.done[node]
    return e


# ---- leaves

def const(em: Emitter, node: Node) -> Expr:
    value = node.value
    negative = not isinstance(value, bool) and value < 0
    return _expr(number(value), 30 if negative else ATOM)


def fill(em: Emitter, node: Node) -> Expr:
    shape = node.type.shape
    if node["kind"] == "eye":
        return _expr(f"torch.eye({', '.join(str(n) for n in shape)}, dtype=c.dtype, device=c.device)")
    return _expr(f"torch.{node['kind']}({shape!r}, dtype=c.dtype, device=c.device)")


def weight(em: Emitter, node: Node) -> Expr:
    return _expr(f'c.w[{em.prefix} + "{node["path"]}"]' if em.prefix else f'c.w["{node["path"]}"]')


def slot(em: Emitter, node: Node) -> Expr:
    raise KeyError(f"the input `{node['name']}` was not bound")


def position(em: Emitter, node: Node) -> Expr:
    text = f"torch.arange({em.t0} + 1, {em.t0} + {em.ticks} + 1, device=c.device)"
    if node.type.batch:
        text += f".expand({em.batch}, -1)"
    return _expr(text)


def head(em: Emitter, node: Node) -> Expr:
    return _expr(f"torch.arange({node.type.heads}, device=c.device)")


def training(em: Emitter, node: Node) -> Expr:
    return _expr("c.training")


# ---- elementwise

def infix(em: Emitter, node: Node) -> Expr:
    sign, precedence = _INFIX[node.op]
    python = is_python(node)
    if python and node.op in ("and", "or"):
        sign = node.op
    wanted = node.type
    if node.op in _COMPARE:
        dtypes = [a.type.dtype for a in node.args]
        wanted = wanted.with_(dtype="float" if "float" in dtypes and node.op not in ("and", "or") else dtypes[0])
    a, b = (tensor(em, x, wanted) for x in node.args)
    if node.op == "pow":
        return _expr(f"{a.atom} ** {b.atom}", precedence, a, b)
    if node.op in ("and", "or") and not python:
        return _expr(f"{a.atom} {sign} {b.atom}", precedence, a, b)
    return _expr(f"{a.at_least(precedence)} {sign} {b.at_least(precedence + 1)}", precedence, a, b)


def extremum(em: Emitter, node: Node) -> Expr:
    name = "maximum" if node.op == "max" else "minimum"
    a, b = (tensor(em, x, node.type) for x in node.args)
    if any(is_python(x) for x in node.args):  # torch.maximum takes no numbers, clamp has another gradient at a tie
        em.writer.use(BLOCKS, name)
    else:
        name = "torch." + name
    return _expr(f"{name}({a.text}, {b.text})", ATOM, a, b)


def call_of(em: Emitter, node: Node) -> Expr:
    (x,) = node.args
    e = as_tensor(em, x)
    text = e.text
    if x.type.dtype != "float" and not is_python(x) and node.type.dtype == "float":
        text = e.atom + ".to(c.dtype)"
    return _expr(_CALLS[node.op].format(text), ATOM, e)


def neg(em: Emitter, node: Node) -> Expr:
    e = em.done[node.args[0]]
    return _expr(f"-{e.at_least(20)}", 30 if e.precedence >= 30 else 10, e)


def not_(em: Emitter, node: Node) -> Expr:
    e = em.done[node.args[0]]
    return _expr(f"(not {e.atom})" if is_python(node) else f"~{e.atom}", ATOM if is_python(node) else 30, e)


def elu1(em: Emitter, node: Node) -> Expr:
    e = as_tensor(em, node.args[0])
    return _expr(f"F.elu({e.text}) + 1", 10, e)


def inverse_softplus(em: Emitter, node: Node) -> Expr:
    e = _variable(em, node.args[0])
    return _expr(f"{e.at_least(10)} + torch.log(-torch.expm1(-{e.atom}))", 10, e)


def where(em: Emitter, node: Node) -> Expr:
    condition, a, b = node.args
    cond = tensor(em, condition, node.type.with_(dtype="bool"))
    x, y = tensor(em, a, node.type), tensor(em, b, node.type)
    if is_python(condition):
        return _expr(f"({x.text} if {cond.text} else {y.text})", ATOM, cond, x, y)
    if is_python(a) and is_python(b):  # two numbers would give torch's default dtype
        em.writer.use(BLOCKS, "choose")
        return _expr(f"choose({cond.text}, {x.text}, {y.text}, c.dtype)", ATOM, cond)
    return _expr(f"torch.where({cond.text}, {x.text}, {y.text})", ATOM, cond, x, y)


def stop(em: Emitter, node: Node) -> Expr:
    e = em.done[node.args[0]]
    return e if is_python(node.args[0]) else _expr(f"{e.atom}.detach()", ATOM, e)


# ---- reductions and algebra

def reduce(em: Emitter, node: Node) -> Expr:
    (x,) = node.args
    e = em.done[x]
    axes_ = [a - len(x.type.shape) for a in node["axes"]]
    if not axes_:
        return e
    where_ = str(axes_[0]) if len(axes_) == 1 else str(tuple(axes_))
    keep = ", keepdim=True" if node["keep"] else ""
    atom = e.atom + (".to(c.dtype)" if node.type.dtype == "float" and x.type.dtype != "float" else "")
    return _expr(f"{atom}.{node.op}({where_}{keep})", ATOM, e)


def inner(em: Emitter, node: Node) -> Expr:
    a, b = node.args
    rank = max(len(a.type.shape), len(b.type.shape))
    x, y = tensor(em, a, node.type, rank), tensor(em, b, node.type, rank)
    if not rank:
        return _expr(f"{x.at_least(20)} * {y.at_least(21)}", 20, x, y)
    return _expr(f"({x.at_least(20)} * {y.at_least(21)}).sum(-1)", ATOM, x, y)


def outer(em: Emitter, node: Node) -> Expr:
    a, b = node.args
    x, y = tensor(em, a, node.type, 1), tensor(em, b, node.type, 1)
    return _expr(f"{x.atom}[..., :, None] * {y.atom}[..., None, :]", 20, x, y)


def linear(em: Emitter, node: Node) -> Expr:
    x, w = node.args
    ex, ew = em.done[x], em.done[w]
    carried = axes(w.type)
    if not carried:
        return _expr(f"F.linear({ex.text}, {ew.text})", ATOM, ex, ew)
    if carried == "H" and not x.type.heads and axes(x.type):
        em.writer.use(BLOCKS, "linear_heads")
        extra = f", {head_axis(x.type)}" if head_axis(x.type) != 1 else ""
        return _expr(f"linear_heads({ex.text}, {ew.text}{extra})", ATOM, ex, ew)
    if len(x.type.shape) == 1 and x.type.clock and not w.type.clock:  # the ticks are the rows of one product
        left = tensor(em, x, node.type, 1)
        right = tensor(em, w, node.type.with_(clock=None), 2)
        return _expr(f"{left.at_least(20)} @ {right.atom}.mT", 20, left, right)
    if len(x.type.shape) == 1:
        left, right = tensor(em, x, node.type, 1), tensor(em, w, node.type, 2)
        return _expr(f"({right.at_least(20)} @ {left.atom}[..., None])[..., 0]", ATOM, left, right)
    left, right = tensor(em, x, node.type, len(x.type.shape)), tensor(em, w, node.type, len(x.type.shape))
    return _expr(f"{left.at_least(20)} @ {right.atom}.mT", 20, left, right)


def matmul(em: Emitter, node: Node) -> Expr:
    a, b = node.args
    ra, rb = len(a.type.shape), len(b.type.shape)
    if b.op == "transpose" and not axes(b.type) and rb == 2 and b.args[0] in em.done:
        x, w = em.done[a], em.done[b.args[0]]
        return _expr(f"F.linear({x.text}, {w.text})", ATOM, x, w)
    x, y = tensor(em, a, node.type, ra), tensor(em, b, node.type, rb)
    if ra == 1 and rb == 1:
        return _expr(f"({x.at_least(20)} * {y.at_least(21)}).sum(-1)", ATOM, x, y)
    if rb == 1:
        return _expr(f"({x.at_least(20)} @ {y.atom}[..., None])[..., 0]", ATOM, x, y)
    if ra == 1 and a.type.clock and not b.type.clock and rb == 2:
        y = tensor(em, b, node.type.with_(clock=None), 2)
        return _expr(f"{x.at_least(20)} @ {y.at_least(21)}", 20, x, y)
    if ra == 1:
        return _expr(f"({x.atom}[..., None, :] @ {y.at_least(21)})[..., 0, :]", ATOM, x, y)
    if ra > 2:
        y = tensor(em, b, node.type, ra)
    return _expr(f"{x.at_least(20)} @ {y.at_least(21)}", 20, x, y)


def transpose(em: Emitter, node: Node) -> Expr:
    e = em.done[node.args[0]]
    return _expr(f"{e.atom}.mT", ATOM, e)


# ---- rows

def rowwise(em: Emitter, node: Node) -> Expr:
    em.writer.use(BLOCKS, node.op)
    x, *weights = node.args
    parts = [em.done[x]] + [tensor(em, w, node.type, 1) for w in weights]
    text = [p.text for p in parts]
    if node.get("eps") not in (None, 1e-5 if node.op == "layernorm" else 1e-6):
        text.append(f"eps={node['eps']!r}")
    return _expr(f"{node.op}({', '.join(text)})", ATOM, *parts)


def newton_schulz(em: Emitter, node: Node) -> Expr:
    em.writer.use(BLOCKS, "newton_schulz")
    e = em.done[node.args[0]]
    extra = "".join(f", {k}={node[k]!r}" for k in ("iters", "coefficients", "eps", "dtype") if node.get(k) is not None)
    return _expr(f"newton_schulz({e.text}{extra})", ATOM, e)


# ---- shapes

def _expanded(em: Emitter, node: Node, target: Type) -> Expr:
    """An operand with every carried axis of the target at its full size (cat and stack do not broadcast)."""
    e = tensor(em, node, target)
    if is_python(node):
        dtype = "c.dtype" if target.dtype == "float" else "torch.long" if target.dtype == "int" else "torch.bool"
        e = _expr(f"torch.tensor({e.text}, dtype={dtype}, device=c.device)")
    missing = set(axes(target)) - set(axes(node.type))
    if not missing and len(node.type.shape) == len(target.shape) and node.type.shape[:-1] == target.shape[:-1]:
        return e
    sizes = {"B": em.batch, "H": str(target.heads), "T": em.ticks if not target.short else f"{em.ticks} - {target.short}"}
    shape = ", ".join([sizes[a] for a in axes(target)] + [str(n) for n in target.shape])
    return _expr(f"{e.atom}.expand({shape})", ATOM, e)


def concat(em: Emitter, node: Node) -> Expr:
    parts = [_expanded(em, a, node.type.with_(shape=a.type.shape)) for a in node.args]
    return _expr(f"torch.cat([{', '.join(p.text for p in parts)}], -1)", ATOM, *parts)


def stack(em: Emitter, node: Node) -> Expr:
    each = node.type.with_(shape=node.type.shape[:-1])
    parts = []
    for a in node.args:
        part = _expanded(em, a, each)
        if a.type.shape != each.shape and ".expand(" not in part.text:
            part = _expr(f"{part.atom}.expand(*{part.atom}.shape[:{len(axes(each))}], "
                         f"{', '.join(str(n) for n in each.shape)})", ATOM, part)
        parts.append(part)
    return _expr(f"torch.stack([{', '.join(p.text for p in parts)}], -1)", ATOM, *parts)


def index(em: Emitter, node: Node) -> Expr:
    e, item, rank = em.done[node.args[0]], node["item"], len(node.args[0].type.shape)
    text = str(item) if isinstance(item, int) else f"{item[0]}:{item[1]}"
    carried = len(axes(node.type))
    before = "" if not carried else ":, " * carried if rank > 1 and carried < 2 else "..., "
    after = ", :" * (rank - 1) if before == "..., " else ""
    return _expr(f"{e.atom}[{before}{text}{after}]", ATOM, e)


def reshape(em: Emitter, node: Node) -> Expr:
    e, n = em.done[node.args[0]], len(axes(node.type))
    sizes = ", ".join(str(s) for s in node["shape"])
    if not n:
        return _expr(f"{e.atom}.reshape({sizes})", ATOM, e)
    e = _variable(em, node.args[0])
    return _expr(f"{e.atom}.reshape(*{e.atom}.shape[:{n}], {sizes})".replace(", )", ")"), ATOM, e)


def split_heads(em: Emitter, node: Node) -> Expr:
    e, heads = em.done[node.args[0]], node.type.heads
    back = -2 - (len(node.type.shape) - 1)
    unflat = f"{e.atom}.unflatten(-1, ({heads}, {node.type.shape[-1]}))"
    if len(node.type.shape) == 1 and axes(node.type) == "BHT":
        return _expr(f"{unflat}.transpose(1, 2)", ATOM, e)
    return _expr(f"{unflat}.movedim(-2, {head_axis(node.type)})" if back else unflat, ATOM, e)


def merge_heads(em: Emitter, node: Node) -> Expr:
    (x,) = node.args
    e = em.done[x]
    if axes(x.type) == "BHT":
        return _expr(f"{e.atom}.transpose(1, 2).flatten(2)", ATOM, e)
    return _expr(f"{e.atom}.movedim({head_axis(x.type)}, -2).flatten(-2)", ATOM, e)


def spread(em: Emitter, node: Node) -> Expr:
    e, at, rank = em.done[node.args[0]], head_axis(node.type), len(axes(node.type)) + len(node.type.shape)
    sizes = ", ".join(str(node.type.heads) if i == at else "-1" for i in range(rank))
    return _expr(f"{e.atom}.unsqueeze({at}).expand({sizes})", ATOM, e)


def next_(em: Emitter, node: Node) -> Expr:
    (x,) = node.args
    e = em.done[x]
    lead = ":, " * axes(x.type).index("T")
    return _expr(f"{e.atom}[{lead}1:]", ATOM, e)


# ---- tables, look-back, calls

def embed(em: Emitter, node: Node) -> Expr:
    i, w = (em.done[a] for a in node.args)
    if node.args[1].type.heads:
        em.writer.use(BLOCKS, "embed_heads")
        return _expr(f"embed_heads({i.text}, {w.text}, {head_axis(node.type)})", ATOM, i, w)
    return _expr(f"F.embedding({i.text}, {w.text})", ATOM, i, w)


def _tail(em: Emitter, node: Node) -> str:
    return f'{em.prefix} + "{node["tail"]}"' if em.prefix else f'"{node["tail"]}"'


def short_conv(em: Emitter, node: Node) -> Expr:
    em.writer.use(LOOKBACK, "short_conv")
    x, w, *bias = node.args
    if len(em.done[x].text) > 48:  # the statement has two results and two more arguments: keep it readable
        em.variable(x)
    parts = [tensor(em, x, node.type, 1), em.done[w]] + [em.done[b] for b in bias]
    if w.type.heads and not x.type.heads:
        parts[0] = _expanded(em, x, node.type)
    tail = _tail(em, node)
    extra = f", {parts[2].text}" if bias else ""
    e = _expr(f"short_conv({parts[0].text}, {parts[1].text}, c.s[{tail}]{extra})", ATOM, *parts)
    em.assign(node, e, targets=f", c.n[{tail}]")
    return e


def previous(em: Emitter, node: Node) -> Expr:
    em.writer.use(LOOKBACK, "previous")
    x, tail = em.done[node.args[0]], _tail(em, node)
    e = _expr(f"previous({x.text}, c.s[{tail}], {tick_axis(node.type)})", ATOM, x)
    em.assign(node, e, targets=f", c.n[{tail}]")
    return e


def rope(em: Emitter, node: Node) -> Expr:
    em.writer.use(LOOKBACK, "rope")
    x = em.done[node.args[0]]
    extra = f", base={node['base']!r}" if node["base"] != 10000.0 else ""
    extra += f", reset={node['reset']!r}" if node["reset"] else ""
    extra += f", axis={tick_axis(node.type)}" if tick_axis(node.type) != -2 else ""
    return _expr(f"rope({x.text}, {em.t0}{extra})", ATOM, x)


def call(em: Emitter, node: Node) -> Expr:
    child = node["child"]
    if em.instance is None:
        raise KeyError(f"a call of `{child}` outside an instance")
    function = em.writer.function(em.instance.child(child))
    parts = [em.done[a] for a in node.args]
    path = f'{em.prefix} + "{child}."' if em.prefix else f'"{child}."'
    e = _expr(f"{function}({', '.join(['c', path, *(p.text for p in parts)])})", ATOM, *parts)
    if node not in em.names and (em.uses[node] > 1 or len(e.text) > em.wide):
        words = [x for x in child.split(".") if not x.isdigit()]
        em.assign(node, e, words[-1] if words else "x")
    return e


def recall(em: Emitter, node: Node) -> Expr:
    raise KeyError(f"a recall of `{node['memory']}` ({node['mode']}) was not bound by the level's code")


# ---- the whole model

def cross_entropy(em: Emitter, node: Node) -> Expr:
    em.writer.use(BLOCKS, "cross_entropy")
    p, y, *mask = node.args
    short = max(a.type.short for a in node.args)
    parts = [tensor(em, a, Type(dtype=a.type.dtype, batch=a.type.batch, clock=a.type.clock, heads=a.type.heads,
                                short=short), len(a.type.shape)) for a in node.args]
    text = [x.text for x in parts] + ([f"smoothing={node['smoothing']!r}"] if node.get("smoothing") else [])
    return _expr(f"cross_entropy({', '.join(text)})", ATOM, *parts)


def mean_all(em: Emitter, node: Node) -> Expr:
    e = as_tensor(em, node.args[0])
    cast = ".to(c.dtype)" if node.args[0].type.dtype != "float" else ""
    return _expr(f"{e.atom}{cast}.mean()", ATOM, e)


def sum_features(em: Emitter, node: Node) -> Expr:
    e, rank = em.done[node.args[0]], len(node.args[0].type.shape)
    return _expr(f"{e.atom}.sum({tuple(range(-rank, 0))})", ATOM, e) if rank else e


OPERATIONS: dict[str, Operation] = {
    "const": const, "fill": fill, "weight": weight, "slot": slot, "position": position, "head": head, "training": training,
    "neg": neg, "not": not_, "elu1": elu1, "inverse_softplus": inverse_softplus, "max": extremum, "min": extremum,
    "where": where, "stop": stop, "sum": reduce, "mean": reduce, "amax": reduce, "inner": inner, "outer": outer,
    "linear": linear, "matmul": matmul, "transpose": transpose, "softmax": rowwise, "log_softmax": rowwise,
    "l2norm": rowwise, "rmsnorm": rowwise, "layernorm": rowwise, "newton_schulz": newton_schulz, "concat": concat,
    "stack": stack, "index": index, "reshape": reshape, "split_heads": split_heads, "merge_heads": merge_heads,
    "spread": spread, "next": next_, "embed": embed, "short_conv": short_conv, "previous": previous, "rope": rope,
    "call": call, "recall": recall, "cross_entropy": cross_entropy, "mean_all": mean_all, "sum_features": sum_features,
    **dict.fromkeys(_INFIX, infix), **dict.fromkeys(_CALLS, call_of),
}
