"""Functions of square matrices, and comparisons of outputs."""

from __future__ import annotations

from typing import Any

from nestflow.ir import ops
from nestflow.ir.node import Node
from nestflow.vocabulary.record import Word, parse_signature, word


@word("eye(n...)", also="identity")
def eye(site: Any, *n: Any) -> Any:
    """The unit matrix n × n."""
    if not 1 <= len(n) <= 2:
        site.fail("NF214", "`eye` takes the size of a square matrix", "`eye(4)`")
    return site.fill("eye", (n[0], n[-1]))


@word("diag(x)", also="diagonal")
def diag(site: Any, x: Any) -> Node:
    """The diagonal matrix of a vector; of a matrix, the vector of its diagonal."""
    return ops.diag(site.vector(x, "diag"), site.span)


@word("trace(x)")
def trace(site: Any, x: Any) -> Node:
    """The sum of a square matrix's diagonal: a number."""
    return ops.trace(site.node(x, "trace"), site.span)


@word("solve(A, b, method = exact, iters = 30)", also="inv inverse lstsq cg", paper="MesaNet", options="exact cg")
def solve(site: Any, a: Any, b: Any, method: Any, iters: Any) -> Node:
    """A⁻¹ b, A symmetric and positive, b a vector or a matrix of columns. `method = cg`: conjugate gradients from
    b / diag A, `iters` steps; its derivative is that of A⁻¹ b, by cg too."""
    how = site.word_text(method)
    if how not in ("exact", "cg"):
        site.fail("NF309", f"solve knows no method `{how}`", "`method = exact` or `method = cg`")
    return ops.solve(site.node(a, "solve"), site.real(b, "solve"), how, site.size(iters, "iters"), site.span)


@word("root(A, p)", also="matrix_power sqrtm", paper="Shampoo")
def root(site: Any, a: Any, p: Any) -> Node:
    """A^(1/p) of a symmetric positive matrix, by its eigenvalues: `root(L, -4)` is L^(−1/4). Those below 1e-14 of
    the greatest (in float32 below its rounding) stand at that floor, so a singular matrix has a root too."""
    order = float(site.number(p, "p"))
    if order == 0:
        site.fail("NF304", "the order of a root is not 0", "`root(A, 2)`, `root(A, -4)`")
    return ops.matrix_function("matrix_root", site.node(a, "root"), site.span, p=order)


@word("eigenvectors(A)", also="eigh eig", paper="SOAP")
def eigenvectors(site: Any, a: Any) -> Node:
    """The eigenvectors of a symmetric matrix in columns, by ascending eigenvalue. Where eigenvalues are equal (up to
    eps^0.6 of the greatest, 4e-10 in float64), those that diag(√1, √2, …) has in their space, which no gradient
    turns there. Each column has a positive product with (√1, √2, …)."""
    return ops.matrix_function("eigenvectors", site.node(a, "eigenvectors"), site.span)


@word("qr(A)", also="orthonormalize gram_schmidt", paper="SOAP")
def qr(site: Any, a: Any) -> Node:
    """Q of A = QR, with a positive diagonal of R. A's columns must be independent: what stands in Q for one that is not
    is rounding."""
    return ops.qr(site.node(a, "qr"), site.span)


@word("groupnorm(x, groups = 1, eps = 1e-5 in [0, inf))", also="GroupNorm group_norm", paper="RWKV-7, RetNet")
def groupnorm(site: Any, x: Any, groups: Any, eps: Any) -> Node:
    """Mean 0 and biased variance 1 within each of `groups` equal parts of the last axis; then gain and bias."""
    x, n = site.real(x, "groupnorm"), site.size(groups, "groups")
    width = x.type.shape[-1]
    if width % n:
        site.fail("NF307", f"{n} groups do not divide a width of {width}", "a number of groups that does")
    parts = ops.reshape(x, (*x.type.shape[:-1], n, width // n))
    unit = ops.rowwise("layernorm", parts, span=site.span, eps=float(site.number(eps, "eps")))
    gain = site.weight("weight", (width,), site.init("ones"), x.type.heads)
    bias = site.weight("bias", (width,), site.init("zeros"), x.type.heads)
    flat = ops.reshape(unit, x.type.shape)
    return ops.binary("add", ops.binary("mul", flat, gain), bias, site.span)


# --- comparisons ------------------------------------------------------------------------------------------


@word("log_prob(p, y)", kind="loss", also="log_likelihood logprob")
def log_prob(site: Any, p: Any, y: Any) -> Node:
    """log softmax(p)[y], classes on the last axis of p: −cross_entropy of each tick or example."""
    return ops.log_prob(site.real(p, "log_prob"), site.node(y, "log_prob"), site.span)


@word("kl(p, q)", kind="loss", also="kl_div KLDivLoss distillation")
def kl(site: Any, p: Any, q: Any) -> Node:
    """KL(softmax p ‖ softmax q) over the last axis. In `retain`, `kl(alpha, scale = 1 in (0, inf))`: A ← αA + step,
    read through θ = scale · softmax(A) on the key axis of each tensor; `init` gives A (MIRAS, Memora)."""
    return ops.kl_divergence(site.real(p, "kl"), site.real(q, "kl"), site.span)


_KL = "kl(alpha, scale = 1 in (0, inf))"
KL_RETENTION = Word("kl", _KL, parse_signature(_KL)[1], "retention", "")


@word("square_distance(a, b)", kind="loss", also="sse distance")
def square_distance(site: Any, a: Any, b: Any) -> Node:
    """Σ (a − b)² over all features, of records over all their tensors."""
    pairs = site.pairs(a, b, "square_distance")
    total: Node | None = None
    for x, y in pairs:
        e = ops.reduce("sum", ops.unary("square", ops.binary("sub", x, y, site.span)))
        total = e if total is None else ops.binary("add", total, e, site.span)
    return total if total is not None else ops.const(0.0)
