"""Square matrices and classes: `diag`, `solve`, roots and eigenvectors of symmetric matrices, one-hot rows.

Over the last two feature axes; a tensor like w (inside update rules) passes with its own axes.
  diag(x)                           a vector as a diagonal matrix; diagonal(x) a matrix's diagonal
  solve(A, b; method, iters)        A⁻¹ b, b a vector or the columns of a matrix. method: exact, cg
  matrix_root(A; p)                 A^(1/p), symmetric A; eigenvectors(A) in columns; qr(A) is Q, diag R > 0
  one_hot(i; n)                     bool [n]: true at the class i
  matrix_root_backward, eigenvectors_backward, qr_backward (g, A)   their derivatives, one operation each
"""

from __future__ import annotations

from nestflow.diagnostics.core import Span
from nestflow.ir.algebra import inner, matmul, outer, reduce, transpose
from nestflow.ir.elementwise import binary, const, unary, where
from nestflow.ir.node import Node, make
from nestflow.ir.shapes import ShapeError, carried, mix_check, sized


def square_matrix(x: Node, what: str) -> None:
    """A ShapeError where x is no square matrix."""
    if not x.type.like and (len(x.type.shape) != 2 or x.type.shape[0] != x.type.shape[1]):
        raise ShapeError(f"{what} takes a square matrix, and this is {x.type}")


def diag(x: Node, span: Span | None = None) -> Node:
    """A vector as a diagonal matrix, a matrix as the vector of its diagonal."""
    shape = x.type.shape
    if x.type.like:
        raise ShapeError("diag takes a value whose axes are known, and this is like w")
    if len(shape) == 1:
        return make("diag", (x,), x.type.with_(shape=sized((*shape, *shape))), span)
    square_matrix(x, "diag of a matrix")
    return make("diagonal", (x,), x.type.with_(shape=shape[:1]), span)


def trace(x: Node, span: Span | None = None) -> Node:
    """The sum of the diagonal: a number."""
    square_matrix(x, "trace")
    return reduce("sum", make("diagonal", (x,), x.type.with_(shape=x.type.shape[:1]), span), 0, span=span)


def solve(a: Node, b: Node, method: str = "exact", iters: int = 30, span: Span | None = None) -> Node:
    """A⁻¹ b for a symmetric positive A. exact, or `iters` steps of conjugate gradients from b / diag A."""
    square_matrix(a, "solve")
    like = a.type.like or b.type.like
    if not like and (len(b.type.shape) not in (1, 2) or b.type.shape[0] != a.type.shape[0]):
        raise ShapeError(f"solve of a matrix {list(a.type.shape)} and a right side {list(b.type.shape)}")
    mix_check((a.type, b.type))
    type_ = carried(a.type, b.type).with_(dtype="float", shape=b.type.shape)
    return make("solve", (a, b), type_, span, method=method, iters=iters)


def matrix_function(op: str, x: Node, span: Span | None = None, **attrs: float) -> Node:
    """matrix_root(p), eigenvectors: of a symmetric matrix, which their argument is."""
    square_matrix(x, {"matrix_root": "root"}.get(op, op))
    return make(op, (x,), x.type.with_(dtype="float"), span, **attrs)


def qr(x: Node, span: Span | None = None) -> Node:
    """Q of QR, R with a positive diagonal."""
    if not x.type.like and (len(x.type.shape) != 2 or x.type.shape[0] < x.type.shape[1]):
        raise ShapeError(f"qr takes a matrix with at least as many rows as columns, and this is {x.type}")
    return make("qr", (x,), x.type.with_(dtype="float"), span)


def one_hot(i: Node, n: int, span: Span | None = None) -> Node:
    """true at the class, false elsewhere."""
    if i.type.dtype != "int":
        raise ShapeError(f"a class is an integer, and this is {i.type}")
    return make("one_hot", (i,), i.type.with_(dtype="bool", shape=sized((*i.type.shape, n))), span, n=n)


# --- what is made of these ------------------------------------------------------------------------------------


def log_prob(p: Node, y: Node, span: Span | None = None) -> Node:
    """log softmax(p)[y], classes on p's last axis."""
    if not p.type.shape:
        raise ShapeError("log_prob needs scores over classes on the last axis")
    if p.type.heads and not y.type.heads:  # every head is asked for the same class
        y = make("spread", (y,), y.type.with_(heads=p.type.heads), span)
    logs = make("log_softmax", (p,), p.type.with_(dtype="float"), span)
    return reduce("sum", where(one_hot(y, p.type.shape[-1], span), logs, const(0.0), span), -1, span=span)


def kl_divergence(p: Node, q: Node, span: Span | None = None) -> Node:
    """KL(softmax p ‖ softmax q) over the last axis."""
    if not p.type.shape or p.type.shape != q.type.shape:
        raise ShapeError(f"kl compares scores over the same classes, and these are {p.type} and {q.type}")
    logs = [make("log_softmax", (x,), x.type.with_(dtype="float"), span) for x in (p, q)]
    return inner(unary("exp", logs[0], span), binary("sub", logs[0], logs[1], span), span)


# --- derivatives ------------------------------------------------------------------------------------------------


def solve_pullback(n: Node, g: Node) -> tuple[Node, Node]:
    """b̄ = A⁻ᵀ g by the same method, Ā = −b̄ xᵀ."""
    a, b = n.args
    method, iters = n["method"], n["iters"]
    gb = solve(transpose(a) if method == "exact" else a, g, method, iters)
    ga = outer(gb, n) if len(b.type.shape) == 1 else matmul(gb, transpose(n))
    return unary("neg", ga), gb
