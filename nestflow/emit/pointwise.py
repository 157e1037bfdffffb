"""Leaves and elementwise operations in torch. Each function: (emitter, node) -> Expr."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestflow.emit.operand import ATOM, INFIX, Expr, as_tensor, expr_of, is_python, number, tensor, variable
from nestflow.ir.node import Node
from nestflow.ir.ops import COMPARE

if TYPE_CHECKING:
    from nestflow.emit.expr import Emitter

BLOCKS = "nestflow.ops.blocks"
CALLS = {
    "exp": "torch.exp({})",
    "log": "torch.log({})",
    "sqrt": "torch.sqrt({})",
    "abs": "torch.abs({})",
    "sign": "torch.sign({})",
    "square": "torch.square({})",
    "relu": "F.relu({})",
    "sigmoid": "torch.sigmoid({})",
    "tanh": "torch.tanh({})",
    "cos": "torch.cos({})",
    "silu": "F.silu({})",
    "gelu": "F.gelu({})",
    "gelu_tanh": 'F.gelu({}, approximate="tanh")',
    "softplus": "F.softplus({})",
    "log_sigmoid": "F.logsigmoid({})",
}


# ---- leaves


def const(em: Emitter, node: Node) -> Expr:
    value = node.value
    negative = not isinstance(value, bool) and value < 0
    return expr_of(number(value), 30 if negative else ATOM)


def fill(em: Emitter, node: Node) -> Expr:
    shape = node.type.shape
    if node["kind"] == "eye":
        return expr_of(f"torch.eye({', '.join(str(n) for n in shape)}, dtype=c.dtype, device=c.device)")
    return expr_of(f"torch.{node['kind']}({shape!r}, dtype=c.dtype, device=c.device)")


def weight(em: Emitter, node: Node) -> Expr:
    return expr_of(f'c.w[{em.prefix} + "{node["path"]}"]' if em.prefix else f'c.w["{node["path"]}"]')


def slot(em: Emitter, node: Node) -> Expr:
    raise KeyError(f"the input `{node['name']}` was not bound")


def position(em: Emitter, node: Node) -> Expr:
    text = f"torch.arange({em.t0} + 1, {em.t0} + {em.ticks} + 1, device=c.device)"
    if node.type.batch:
        text += f".expand({em.batch}, -1)"
    return expr_of(text)


def head(em: Emitter, node: Node) -> Expr:
    return expr_of(f"torch.arange({node.type.heads}, device=c.device)")


def training(em: Emitter, node: Node) -> Expr:
    return expr_of("c.training")


# ---- elementwise


def infix(em: Emitter, node: Node) -> Expr:
    sign, precedence = INFIX[node.op]
    python = is_python(node)
    if python and node.op in ("and", "or"):
        sign = node.op
    wanted = node.type
    if node.op in COMPARE or node.op in ("and", "or"):
        dtypes = [a.type.dtype for a in node.args]
        wanted = wanted.with_(dtype="float" if "float" in dtypes and node.op not in ("and", "or") else dtypes[0])
    if em.writer.one_token and node.op in ("add", "sub"):
        fused = _fused(em, node)
        if fused is not None:
            return fused
    a, b = (tensor(em, x, wanted) for x in node.args)
    if node.op == "pow":
        return expr_of(f"{a.atom} ** {b.atom}", precedence, a, b)
    if node.op in ("and", "or") and not python:
        return expr_of(f"{a.atom} {sign} {b.atom}", precedence, a, b)
    return expr_of(f"{a.at_least(precedence)} {sign} {b.at_least(precedence + 1)}", precedence, a, b)


def _fused(em: Emitter, node: Node) -> Expr | None:
    """x ± a·b in one call, where the product stands nowhere else."""
    first, second = node.args
    for x, product in ((first, second), (second, first)):
        if product.op not in ("mul", "pair") or em.done[product].text.isidentifier() or is_python(x):
            continue
        if any(n.type.dtype != "float" for n in (node, x, *product.args)) or any(is_python(a) for a in product.args):
            continue
        if node.op == "sub" and product is first:
            continue
        base, sign = tensor(em, x, node.type), ", value=-1" if node.op == "sub" else ""
        if product.op == "pair":
            a, h = (em.done[p] for p in product.args)
            return expr_of(f"torch.addcmul({base.text}, {a.atom}.mT, {h.text}{sign})", ATOM, base, a, h)
        a, b = (tensor(em, p, node.type) for p in product.args)
        return expr_of(f"torch.addcmul({base.text}, {a.text}, {b.text}{sign})", ATOM, base, a, b)
    return None


def extremum(em: Emitter, node: Node) -> Expr:
    name = "maximum" if node.op == "max" else "minimum"
    a, b = (tensor(em, x, node.type) for x in node.args)
    if any(is_python(x) for x in node.args):  # torch.maximum takes no numbers, clamp has another gradient at a tie
        em.writer.use(BLOCKS, name)
    else:
        name = "torch." + name
    return expr_of(f"{name}({a.text}, {b.text})", ATOM, a, b)


def call_of(em: Emitter, node: Node) -> Expr:
    (x,) = node.args
    e = as_tensor(em, x)
    text = e.text
    if x.type.dtype != "float" and not is_python(x) and node.type.dtype == "float":
        text = e.atom + ".to(c.dtype)"
    if node.op == "gelu" and of_a_head(em, node):
        return expr_of(f"{em.writer.use(BLOCKS, 'gelu')}({text})", ATOM, e)
    return expr_of(CALLS[node.op].format(text), ATOM, e)


def of_a_head(em: Emitter, node: Node) -> bool:
    """Whether a value is one token's vector of every head, [B, H, 1, d]."""
    t = node.type
    return em.writer.one_token and bool(t.batch and t.heads and t.clock) and len(t.shape) == 1


def neg(em: Emitter, node: Node) -> Expr:
    e = em.done[node.args[0]]
    return expr_of(f"-{e.at_least(20)}", 30 if e.precedence >= 30 else 10, e)


def not_(em: Emitter, node: Node) -> Expr:
    e = em.done[node.args[0]]
    return expr_of(f"(not {e.atom})" if is_python(node) else f"~{e.atom}", ATOM if is_python(node) else 30, e)


def elu1(em: Emitter, node: Node) -> Expr:
    e = as_tensor(em, node.args[0])
    return expr_of(f"F.elu({e.text}) + 1", 10, e)


def inverse_softplus(em: Emitter, node: Node) -> Expr:
    e = variable(em, node.args[0])
    return expr_of(f"{e.at_least(10)} + torch.log(-torch.expm1(-{e.atom}))", 10, e)


def where(em: Emitter, node: Node) -> Expr:
    condition, a, b = node.args
    cond = tensor(em, condition, node.type.with_(dtype="bool"))
    x, y = tensor(em, a, node.type), tensor(em, b, node.type)
    if is_python(condition):
        return expr_of(f"({x.text} if {cond.text} else {y.text})", ATOM, cond, x, y)
    if is_python(a) and is_python(b):  # two numbers would give torch's default dtype
        em.writer.use(BLOCKS, "choose")
        return expr_of(f"choose({cond.text}, {x.text}, {y.text}, c.dtype)", ATOM, cond)
    return expr_of(f"torch.where({cond.text}, {x.text}, {y.text})", ATOM, cond, x, y)


def stop(em: Emitter, node: Node) -> Expr:
    e = em.done[node.args[0]]
    return e if is_python(node.args[0]) or em.writer.one_token else expr_of(f"{e.atom}.detach()", ATOM, e)
