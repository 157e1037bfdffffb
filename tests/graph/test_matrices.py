"""Functions of matrices and comparisons of outputs in specs: shapes, mistakes, and their values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import nestflow

SPEC = """nestflow 1
input x : float[T, 6]
input c : int[T] in [0, 6)
flow model(x, c) {{ z = linear(x, 6); A = outer_product(z, z) + diag(softplus(z)); return {} }}
output model(x, c)
"""


def run(expression: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The output, z, A and c."""
    b = nestflow.compile(SPEC.format(expression), dtype="float64", seed=1)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 6, generator=g, dtype=torch.float64)
    c = torch.randint(0, 6, (2, 3), generator=g)
    out = b.module(x=x, c=c)
    torch.testing.assert_close(b.reference()(x=x, c=c), out)
    z = x @ dict(b.module.named_parameters())["model.linear.weight"].mT
    return out, z, z[..., :, None] * z[..., None, :] + torch.diag_embed(F.softplus(z)), c


def test_log_prob_is_torchs_cross_entropy() -> None:
    out, z, _, c = run("log_prob(z, c)")
    torch.testing.assert_close(out, -F.cross_entropy(z.mT, c, reduction="none"))


def test_kl_is_torchs() -> None:
    out, z, _, _ = run("kl(z, x)")
    q = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    want = F.kl_div(q.log_softmax(-1), z.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(out, want)


def test_groupnorm_is_torchs() -> None:
    out, z, _, _ = run("groupnorm(z, 3)")
    torch.testing.assert_close(out, F.group_norm(z.flatten(0, 1), 3).unflatten(0, (2, 3)))


def test_solve_trace_and_diag() -> None:
    out, z, a, _ = run("solve(A, z) + trace(A) * diag(A) + solve(A, A) @ z - z")
    want = torch.linalg.solve(a, z) + a.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True) * a.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(out, want)


def test_extrema_of_one_value_and_of_two() -> None:
    out, z, _, _ = run("max(z) + min(z, axis = 0) + max(z, 0) + min(z, x)")
    x = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    want = (z.amax(-1) + z.amin(-1))[..., None] + z.clamp(min=0) + torch.minimum(z, x)
    torch.testing.assert_close(out, want)


def test_a_loss_of_two_outputs() -> None:
    text = SPEC.format("z") + "level outer { every 1 step; memory weights(model); update gd(0.1)\n"
    text += "  objective kl(model(x, c), x) - 0.5 * log_prob(model(x, c), c) }\n"
    b = nestflow.compile(text, dtype="float64", seed=1)
    x, c = torch.randn(2, 3, 6, dtype=torch.float64), torch.randint(0, 6, (2, 3))
    z = b.module(x=x, c=c)
    want = F.kl_div(x.log_softmax(-1), z.log_softmax(-1), log_target=True, reduction="none").sum(-1).mean()
    torch.testing.assert_close(b.module.losses(x=x, c=c)["outer"], want + 0.5 * F.cross_entropy(z.mT, c))
    total = want + 0.5 * F.cross_entropy(z.mT, c)
    torch.testing.assert_close(b.reference().loss(b.graph.step_levels[0].objective, {"x": x, "c": c}), total)


@pytest.mark.parametrize(
    ("expression", "code", "said"),
    [
        ("solve(z, z)", "NF301", "square matrix"),
        ("solve(A, concat(z, z))", "NF301", "right side"),
        ("solve(A, z, method = lu)", "NF201", "lu"),
        ('solve(A, z, method = "lu")', "NF309", "lu"),
        ("root(A, 0)", "NF304", "order"),
        ("trace(z)", "NF301", "square matrix"),
        ("diag(stack(z, z))", "NF301", "square matrix"),
        ("qr(transpose(stack(z, z)))", "NF301", "rows"),
        ("groupnorm(z, 4)", "NF307", "divide"),
        ("log_prob(z, z)", "NF301", "integer"),
        ("kl(z, concat(z, z))", "NF301", "same classes"),
        ("eye()", "NF214", "size"),
        ("square_distance(z, {a: z})", "NF", "record"),
    ],
)
def test_mistakes(expression: str, code: str, said: str) -> None:
    with pytest.raises(nestflow.NestflowError) as e:
        nestflow.compile(SPEC.format(expression))
    assert code in str(e.value) and said in str(e.value)


@pytest.mark.parametrize("form", ["each", "norm", "mixed"])
def test_forms_of_huber(form: str) -> None:
    """One update from an empty matrix: W = −rate · ∂ℓ/∂p kᵀ at p = 0."""
    text = f"""nestflow 1
    input k : float[T, 3]
    input v : float[T, 4]
    output store(k, v)
    level store(k, v) {{ every 1 token; memory matrix; key k; value v; query k; update gd(1)
      objective huber(1.2, form = {form}) }}
    """
    b = nestflow.compile(text, dtype="float64")
    for scale in (0.1, 1.0, 3.0):
        e = -scale * torch.tensor([0.5, -1.0, 1.5, 0.2], dtype=torch.float64)
        k = torch.tensor([1.0, 0, 0], dtype=torch.float64)
        size = e.norm()
        want = {
            "each": e.clamp(-1.2, 1.2),
            "norm": e * min(1.0, 1.2 / float(size)),
            "mixed": e if size <= 1.2 else 1.2 * e.sign(),
        }[form]
        torch.testing.assert_close(b.module(k=k.view(1, 1, 3), v=-e.view(1, 1, 4))[0, 0], -want)


def test_huber_has_three_forms() -> None:
    with pytest.raises(nestflow.NestflowError, match="NF309"):
        nestflow.compile(
            "nestflow 1\ninput k : float[T, 3]\noutput s(k)\n"
            "level s(k) { every 1 token; memory matrix; key k; value k; query k\n"
            '  update gd(1); objective huber(1, form = "l1") }'
        )


def test_a_class_outside_is_a_data_error() -> None:
    b = nestflow.compile(SPEC.format("log_prob(z, c)").replace(" in [0, 6)", ""))
    for runs in (b.module, b.reference()):
        with pytest.raises(nestflow.NestflowError, match="NF506"):
            runs(x=torch.zeros(1, 1, 6), c=torch.tensor([[6]]))
