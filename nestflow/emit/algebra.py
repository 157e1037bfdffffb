"""Reductions, products, row-wise functions and shapes in torch. Each function: (emitter, node) -> Expr."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestflow.emit.layout import axes, head_axis
from nestflow.emit.operand import ATOM, Expr, expr_of, is_python, tensor, variable
from nestflow.ir.node import Node, Type

if TYPE_CHECKING:
    from nestflow.emit.expr import Emitter

BLOCKS = "nestflow.ops.blocks"


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
    return expr_of(f"{atom}.{node.op}({where_}{keep})", ATOM, e)


def inner(em: Emitter, node: Node) -> Expr:
    a, b = node.args
    rank = max(len(a.type.shape), len(b.type.shape))
    x, y = tensor(em, a, node.type, rank), tensor(em, b, node.type, rank)
    if not rank:
        return expr_of(f"{x.at_least(20)} * {y.at_least(21)}", 20, x, y)
    return expr_of(f"({x.at_least(20)} * {y.at_least(21)}).sum(-1)", ATOM, x, y)


def outer(em: Emitter, node: Node) -> Expr:
    a, b = node.args
    x, y = tensor(em, a, node.type, 1), tensor(em, b, node.type, 1)
    return expr_of(f"{x.atom}[..., :, None] * {y.atom}[..., None, :]", 20, x, y)


def linear(em: Emitter, node: Node) -> Expr:
    x, w = node.args
    ex, ew = em.done[x], em.done[w]
    carried = axes(w.type)
    if not carried:
        return expr_of(f"F.linear({ex.text}, {ew.text})", ATOM, ex, ew)
    if carried == "H" and axes(x.type) == "BT" and len(x.type.shape) == 1 and em.writer.one_token:
        heads, (n, width) = w.type.heads or 1, w.type.shape
        return expr_of(
            f"F.linear({ex.text}, {ew.atom}.view({heads * n}, {width})).view(-1, {heads}, 1, {n})", ATOM, ex, ew
        )
    if carried == "H" and not x.type.heads and axes(x.type):
        em.writer.use(BLOCKS, "linear_heads")
        extra = f", {head_axis(x.type)}" if head_axis(x.type) != 1 else ""
        return expr_of(f"linear_heads({ex.text}, {ew.text}{extra})", ATOM, ex, ew)
    if len(x.type.shape) == 1 and x.type.clock and not w.type.clock:  # the ticks are the rows of one product
        left = tensor(em, x, node.type, 1)
        right = tensor(em, w, node.type.with_(clock=None), 2)
        return expr_of(f"{left.at_least(20)} @ {right.atom}.mT", 20, left, right)
    if len(x.type.shape) == 1:
        left, right = tensor(em, x, node.type, 1), tensor(em, w, node.type, 2)
        return expr_of(f"({right.at_least(20)} @ {left.atom}[..., None])[..., 0]", ATOM, left, right)
    left, right = tensor(em, x, node.type, len(x.type.shape)), tensor(em, w, node.type, len(x.type.shape))
    return expr_of(f"{left.at_least(20)} @ {right.atom}.mT", 20, left, right)


def matmul(em: Emitter, node: Node) -> Expr:
    a, b = node.args
    ra, rb = len(a.type.shape), len(b.type.shape)
    if b.op == "transpose" and not axes(b.type) and rb == 2 and b.args[0] in em.done:
        x, w = em.done[a], em.done[b.args[0]]
        return expr_of(f"F.linear({x.text}, {w.text})", ATOM, x, w)
    x, y = tensor(em, a, node.type, ra), tensor(em, b, node.type, rb)
    if ra == 1 and rb == 1:
        return expr_of(f"({x.at_least(20)} * {y.at_least(21)}).sum(-1)", ATOM, x, y)
    if rb == 1:
        return expr_of(f"({x.at_least(20)} @ {y.atom}[..., None])[..., 0]", ATOM, x, y)
    if ra == 1 and a.type.clock and not b.type.clock and rb == 2:
        y = tensor(em, b, node.type.with_(clock=None), 2)
        return expr_of(f"{x.at_least(20)} @ {y.at_least(21)}", 20, x, y)
    if ra == 1:
        return expr_of(f"({x.atom}[..., None, :] @ {y.at_least(21)})[..., 0, :]", ATOM, x, y)
    if ra > 2:
        y = tensor(em, b, node.type, ra)
    return expr_of(f"{x.at_least(20)} @ {y.at_least(21)}", 20, x, y)


def transpose(em: Emitter, node: Node) -> Expr:
    e = em.done[node.args[0]]
    return expr_of(f"{e.atom}.mT", ATOM, e)


# ---- rows


def rowwise(em: Emitter, node: Node) -> Expr:
    em.writer.use(BLOCKS, node.op)
    x, *weights = node.args
    parts = [em.done[x]] + [tensor(em, w, node.type, 1) for w in weights]
    text = [p.text for p in parts]
    if node.get("eps") not in (None, 1e-5 if node.op == "layernorm" else 1e-6):
        text.append(f"eps={node['eps']!r}")
    return expr_of(f"{node.op}({', '.join(text)})", ATOM, *parts)


def poly(em: Emitter, node: Node) -> Expr:
    em.writer.use(BLOCKS, "poly")
    x, w = node.args
    parts = [em.done[x], tensor(em, w, node.type, 1)]
    return expr_of(f"poly({parts[0].text}, {parts[1].text}, {node['p']})", ATOM, *parts)


def newton_schulz(em: Emitter, node: Node) -> Expr:
    em.writer.use(BLOCKS, "newton_schulz")
    e = em.done[node.args[0]]
    extra = "".join(f", {k}={node[k]!r}" for k in ("iters", "coefficients", "eps", "dtype") if node.get(k) is not None)
    return expr_of(f"newton_schulz({e.text}{extra})", ATOM, e)


# ---- shapes


def expanded(em: Emitter, node: Node, target: Type) -> Expr:
    """An operand with every carried axis of the target at its full size (cat and stack do not broadcast)."""
    e = tensor(em, node, target)
    if is_python(node):
        dtype = "c.dtype" if target.dtype == "float" else "torch.long" if target.dtype == "int" else "torch.bool"
        e = expr_of(f"torch.tensor({e.text}, dtype={dtype}, device=c.device)")
    missing = set(axes(target)) - set(axes(node.type))
    if not missing and len(node.type.shape) == len(target.shape) and node.type.shape[:-1] == target.shape[:-1]:
        return e
    sizes = {
        "B": em.batch,
        "H": str(target.heads),
        "T": em.ticks if not target.short else f"{em.ticks} - {target.short}",
    }
    shape = ", ".join([sizes[a] for a in axes(target)] + [str(n) for n in target.shape])
    return expr_of(f"{e.atom}.expand({shape})", ATOM, e)


def concat(em: Emitter, node: Node) -> Expr:
    parts = [expanded(em, a, node.type.with_(shape=a.type.shape)) for a in node.args]
    return expr_of(f"torch.cat([{', '.join(p.text for p in parts)}], -1)", ATOM, *parts)


def stack(em: Emitter, node: Node) -> Expr:
    each = node.type.with_(shape=node.type.shape[:-1])
    parts = []
    for a in node.args:
        part = expanded(em, a, each)
        if a.type.shape != each.shape and ".expand(" not in part.text:
            part = expr_of(
                f"{part.atom}.expand(*{part.atom}.shape[:{len(axes(each))}], {', '.join(str(n) for n in each.shape)})",
                ATOM,
                part,
            )
        parts.append(part)
    return expr_of(f"torch.stack([{', '.join(p.text for p in parts)}], -1)", ATOM, *parts)


def index(em: Emitter, node: Node) -> Expr:
    e, item, rank = em.done[node.args[0]], node["item"], len(node.args[0].type.shape)
    text = str(item) if isinstance(item, int) else f"{item[0]}:{item[1]}"
    carried = len(axes(node.type))
    before = "" if not carried else ":, " * carried if rank > 1 and carried < 2 else "..., "
    after = ", :" * (rank - 1) if before == "..., " else ""
    return expr_of(f"{e.atom}[{before}{text}{after}]", ATOM, e)


def reshape(em: Emitter, node: Node) -> Expr:
    e, n = em.done[node.args[0]], len(axes(node.type))
    sizes = ", ".join(str(s) for s in node["shape"])
    if not n:
        return expr_of(f"{e.atom}.reshape({sizes})", ATOM, e)
    e = variable(em, node.args[0])
    return expr_of(f"{e.atom}.reshape(*{e.atom}.shape[:{n}], {sizes})".replace(", )", ")"), ATOM, e)


def split_heads(em: Emitter, node: Node) -> Expr:
    e, heads = em.done[node.args[0]], node.type.heads
    back = -2 - (len(node.type.shape) - 1)
    unflat = f"{e.atom}.unflatten(-1, ({heads}, {node.type.shape[-1]}))"
    if len(node.type.shape) == 1 and axes(node.type) == "BHT":
        return expr_of(f"{unflat}.transpose(1, 2)", ATOM, e)
    return expr_of(f"{unflat}.movedim(-2, {head_axis(node.type)})" if back else unflat, ATOM, e)


def merge_heads(em: Emitter, node: Node) -> Expr:
    (x,) = node.args
    e = em.done[x]
    if axes(x.type) == "BHT" and em.writer.one_token and len(x.type.shape) == 1:
        return expr_of(f"{e.atom}.reshape(-1, 1, {node.type.shape[0]})", ATOM, e)
    if axes(x.type) == "BHT":
        return expr_of(f"{e.atom}.transpose(1, 2).flatten(2)", ATOM, e)
    return expr_of(f"{e.atom}.movedim({head_axis(x.type)}, -2).flatten(-2)", ATOM, e)


def grouped(em: Emitter, node: Node) -> Expr:
    (x,) = node.args
    e, each = em.done[x], (node.type.heads or 1) // (x.type.heads or 1)
    return expr_of(f"{e.atom}.repeat_interleave({each}, {head_axis(x.type)})", ATOM, e)


def spread(em: Emitter, node: Node) -> Expr:
    e, at, rank = em.done[node.args[0]], head_axis(node.type), len(axes(node.type)) + len(node.type.shape)
    sizes = ", ".join(str(node.type.heads) if i == at else "-1" for i in range(rank))
    return expr_of(f"{e.atom}.unsqueeze({at}).expand({sizes})", ATOM, e)


def next_(em: Emitter, node: Node) -> Expr:
    (x,) = node.args
    e = em.done[x]
    lead = ":, " * axes(x.type).index("T")
    return expr_of(f"{e.atom}[{lead}1:]", ATOM, e)
