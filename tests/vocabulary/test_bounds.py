"""Arguments have bounds in the records; a constant outside is told with the range, one inside and one unknown pass."""

from __future__ import annotations

import pytest

import nestflow
from nestflow.diagnostics.core import NestflowError
from nestflow.language import tree
from nestflow.language.shipped import shipped_names, shipped_template
from nestflow.vocabulary import WORDS
from nestflow.vocabulary.bounds import Bounds, parse_bounds
from nestflow.vocabulary.record import REQUIRED, SlotDef, parse_signature

HEAD = """nestflow 1
input x : float[T, 8]
output f(x)
flow f(x) { return VALUE }
loss = LOSS
level outer { every 1 step; memory weights(f); objective loss; UPDATE }
"""


def told(value: str = "linear(x)", update: str = "update gd(0.1)", loss: str = "mean(square(f(x) - x))") -> list[str]:
    text = HEAD.replace("VALUE", value).replace("UPDATE", update).replace("LOSS", loss)
    try:
        nestflow.check(text)
    except NestflowError as e:
        return [f"{d.code} {d.message}" for d in e.diagnostics]
    return []


def level(line: str) -> list[str]:
    fields = {"objective": "objective l2", "retain": "retain 0.5"}
    fields[line.split()[0]] = line
    text = "nestflow 1\ninput x : float[T, 8]\noutput a(x)\nlevel a(x) { memory matrix; key x; value x; query x; "
    try:
        nestflow.check(text + "update gd(0.1); " + "; ".join(fields.values()) + " }\n")
    except NestflowError as e:
        return [f"{d.code} {d.message}" for d in e.diagnostics]
    return []


def test_a_signature_is_read_with_its_bounds() -> None:
    name, slots, more = parse_signature("f(x, p = 0.5 in [0, 1), n = none in (-inf, 3], s in (0, inf), xs...)")
    assert name == "f" and more
    assert slots == (
        SlotDef("x", REQUIRED),
        SlotDef("p", 0.5, Bounds(0, 1, False, True)),
        SlotDef("n", None, Bounds(None, 3, True, False)),
        SlotDef("s", REQUIRED, Bounds(0, None, True, True)),
    )
    with pytest.raises(ValueError, match="no slot at"):
        parse_signature("f(x, p at 3)")


@pytest.mark.parametrize(
    ("text", "inside", "outside", "said"),
    [
        ("[0, 1]", [0, 1, 0.5], [-0.1, 1.1, float("nan"), True], "in [0, 1]"),
        ("(0, inf)", [1e-9, 1e30], [0, -1], "above 0"),
        ("[1, inf)", [1, 7.5], [0.99], "at least 1"),
        ("(-inf, 3]", [-9, 3], [3.1], "at most 3"),
        ("(-inf, 3)", [-9], [3], "below 3"),
    ],
)
def test_an_interval_has_and_leaves_out_its_ends(
    text: str, inside: list[float], outside: list[float], said: str
) -> None:
    b = parse_bounds(text)
    assert all(b.allow(v) for v in inside) and not any(b.allow(v) for v in outside)
    assert b.text == said


VALUES = [
    ("x * bernoulli(2)", "`p` of `bernoulli` is in [0, 1], and this is 2"),
    ("dropout(x, -0.5)", "`p` of `dropout` is in [0, 1), and this is -0.5"),
    ("dropout(x, true)", "`p` of `dropout` is in [0, 1), and this is true"),
    ("rmsnorm(x, eps = -1)", "`eps` of `rmsnorm` is at least 0, and this is -1"),
    ("l2norm(x, eps = -1)", "`eps` of `l2norm` is at least 0, and this is -1"),
    ("layernorm(x, eps = -1)", "`eps` of `layernorm` is at least 0, and this is -1"),
    ("groupnorm(x, eps = -1)", "`eps` of `groupnorm` is at least 0, and this is -1"),
    ("rope(x, base = 0)", "`base` of `rope` is above 0, and this is 0"),
    ("x |> linear(2) |> poly(17)", "`p` of `poly` is in [1, 16], and this is 17"),
    ("linear(x, init = normal(-1))", "`std` of `normal` is at least 0, and this is -1"),
    ("linear(x, init = log_uniform(0, 1))", "`a` of `log_uniform` is above 0, and this is 0"),
    ("linear(x, init = uniform(2, 1))", "no number is between 2 and 1"),
    ("clamp(x, 2, 1)", "no number is between 2 and 1"),
]


@pytest.mark.parametrize(("value", "message"), VALUES, ids=[v for v, _ in VALUES])
def test_a_value_outside_is_told(value: str, message: str) -> None:
    assert told(value) == [f"NF325 {message}"]


UPDATES = [
    ("update gd(cosine(1, warmup = -1))", "`warmup` of `cosine` is at least 0, and this is -1"),
    ("update gd(linear_decay(1, total = 0))", "`total` of `linear_decay` is at least 1, and this is 0"),
    ("update gd(wsd(1, 1, 1, -2))", "`decay` of `wsd` is at least 0, and this is -2"),
    ("update g |> clip_norm(-1) |> gd(1)", "`c` of `clip_norm` is above 0, and this is -1"),
    ("update gd(0.1) |> trust(-1)", "`c` of `trust` is above 0, and this is -1"),
    ("update gd(0.1); project ball(-1)", "`r` of `ball` is above 0, and this is -1"),
]


@pytest.mark.parametrize(("update", "message"), UPDATES, ids=[u for u, _ in UPDATES])
def test_an_update_outside_is_told(update: str, message: str) -> None:
    assert told(update=update) == [f"NF325 {message}"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("objective lp(0.5)", "`p` of `lp` is at least 1, and this is 0.5"),
        ("objective huber(0)", "`delta` of `huber` is above 0, and this is 0"),
        ("retain kl(0.9, -1)", "`scale` of `kl` is above 0, and this is -1"),
        ("retain lq(0.9, 1)", "`q` of `lq` is above 1, and this is 1"),
    ],
)
def test_a_field_outside_is_told(line: str, message: str) -> None:
    assert level(line) == [f"NF325 {message}"]


def test_a_share_of_a_loss_is_told() -> None:
    loss = "cross_entropy(f(x), SHARE, smoothing = 3)".replace("SHARE", "0 * width(f(x))")
    assert told(loss=loss)[0] == "NF325 `smoothing` of `cross_entropy` is in [0, 1], and this is 3"


def _outside(b: tree.Domain) -> str:
    return "-7" if isinstance(b.low, tree.Number) else "7"


OPTIMISERS = [
    (name.rpartition(".")[2], s)
    for name in shipped_names()
    if name.startswith("optimizers.")
    and isinstance(t := shipped_template(name.rpartition(".")[2]), tree.Optimizer)
    for s in t.slots or ()
    if s.domain is not None
]  # fmt: skip


@pytest.mark.parametrize(("name", "slot"), OPTIMISERS, ids=[f"{n}.{s.name}" for n, s in OPTIMISERS])
def test_a_shipped_optimiser_tells_what_is_outside(name: str, slot: tree.Slot) -> None:
    template = shipped_template(name)
    assert template is not None and slot.domain is not None
    given = {"base": "gd(0.1)"}
    needed = [f"{s.name} = {given.get(s.name, 0.5)}" for s in template.slots or () if s.default is None]
    args = [a for a in needed if not a.startswith(f"{slot.name} =")] + [f"{slot.name} = {_outside(slot.domain)}"]
    (message,) = told(update=f"update {name}({', '.join(args)})")
    assert message.startswith(f"NF325 `{slot.name}` of `{name}` is ") and message.endswith(_outside(slot.domain))


def test_most_optimisers_have_bounds() -> None:
    assert len({n for n, _ in OPTIMISERS}) > 15


def test_what_is_not_known_when_compiling_passes() -> None:
    assert told("x * bernoulli(sigmoid(linear(x, 1)))") == []
    assert told(update="update gd(-0.1)") == []  # climbing is a note


def test_every_default_is_inside() -> None:
    for w in WORDS.values():
        for s in w.slots:
            if s.bounds is not None and isinstance(s.default, (int, float)):
                assert s.bounds.allow(s.default), (w.name, s.name)
