"""What a target names, what `use` and `extends` bring, who replaces whom, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from nestflow.diagnostics.core import Diagnostic, NestflowError
from nestflow.language import shipped
from nestflow.language import tree as T
from nestflow.language.printer import print_nl
from nestflow.language.resolve import Program, load, shipped_names, specs_dir
from nestflow.language.shipped import find_shipped

BASE = """nestflow 1
param dim = 8
param depth = 2
input tokens : int[T] in [0, 9]
output model(tokens)
execution { dtype float32 }
helper = dim * 2
level mem(x, width = 4) { every 1 token; memory m : matrix { key x; value x }; key x; retain 1; return y }
flow block(x) { a = mem(x); return a + helper }
flow model(tokens) { repeat depth { x = block(x) }; return x }
optimizer mine(lr) { step -lr * g }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.nl").write_text(BASE)
    return tmp_path


def program(folder: Path, text: str, **more: object) -> Program:
    (folder / "main.nl").write_text("nestflow 1\n" + text)
    return load(str(folder / "main.nl"), **more)  # type: ignore[arg-type]


def wrong(folder: Path, text: str, **more: object) -> list[Diagnostic]:
    with pytest.raises(NestflowError) as caught:
        program(folder, text, **more)
    return list(caught.value.diagnostics)


def named(p: Program) -> dict[str, T.Statement]:
    return {s.name: s for s in p.body if isinstance(s, (T.Template, T.Param, T.Input, T.Clock, T.Field))}


def test_use_brings_everything(folder: Path) -> None:
    p = program(folder, 'use "base.nl"\nparam extra = 1')
    assert list(named(p)) == ["dim", "depth", "extra", "tokens", "output", "mem", "block", "model", "mine"]
    assert not any(isinstance(s, (T.Use, T.Extends)) for s in p.body)
    assert [Path(s.name).name for s in p.sources] == ["main.nl", "base.nl"]


def test_own_definitions_win_everywhere_and_are_recorded(folder: Path) -> None:
    p = program(folder, 'use "base.nl"\nflow block(x) { return x }\nparam dim = 16\noutput block(tokens)')
    found = named(p)
    assert found["block"].span.source.name.endswith("main.nl")  # type: ignore[union-attr]
    assert found["dim"].default == T.Number(16)  # type: ignore[attr-defined]
    assert sum(isinstance(s, T.Flow) and s.name == "block" for s in p.body) == 1
    assert [r.name for r in p.replaced] == ["dim", "field output", "block"]
    assert p.replaced[-1].used.span.source.name.endswith("base.nl")  # type: ignore[union-attr]


def test_other_slots_are_refused(folder: Path) -> None:
    (d,) = wrong(folder, 'use "base.nl"\nflow block(x, y) { return x }')
    assert (d.code, d.help) == ("NF015", "write `block(x)`, or choose another name")


def test_one_name_and_what_it_needs(folder: Path) -> None:
    p = program(folder, 'use block of "base.nl"')
    assert list(named(p)) == ["dim", "mem", "block"]
    assert any(isinstance(s, T.Assign) and s.names == ("helper",) for s in p.body)
    (d,) = wrong(folder, 'use blok of "base.nl"')
    assert (d.code, d.help) == ("NF013", "did you mean `block`?")


def test_as_renames(folder: Path) -> None:
    p = program(folder, 'use block of "base.nl" as cell\nuse mem of "base.nl" as fast')
    assert {"cell", "fast"} <= set(named(p)) and "block" not in named(p)
    p = program(folder, 'use mine of "base.nl" as theirs\noptimizer mine(lr, beta) { step theirs(lr) }')
    assert {"mine", "theirs"} <= set(named(p))


def test_a_file_reached_twice_is_one(folder: Path) -> None:
    (folder / "other.nl").write_text('nestflow 1\nuse "base.nl"\nparam more = 1\n')
    p = program(folder, 'use "base.nl"\nuse "other.nl"')
    assert sum(isinstance(s, T.Flow) and s.name == "block" for s in p.body) == 1


def test_two_different_ones_of_a_name(folder: Path) -> None:
    (folder / "other.nl").write_text("nestflow 1\nflow block(x) { return x * 2 }\n")
    (d,) = wrong(folder, 'use "base.nl"\nuse "other.nl"')
    assert d.code == "NF014" and d.related
    p = program(folder, 'use "base.nl"\nuse "other.nl"\nflow block(x) { return x }')
    assert named(p)["block"].body == (T.Return(T.Name("x")),)  # type: ignore[attr-defined]


def test_a_replacement_inside_a_used_file_holds(folder: Path) -> None:
    (folder / "other.nl").write_text('nestflow 1\nuse "base.nl"\nflow block(x) { return x * 2 }\n')
    for order in ('use "base.nl"\nuse "other.nl"', 'use "other.nl"\nuse "base.nl"'):
        p = program(folder, order)
        assert named(p)["block"].span.source.name.endswith("other.nl")  # type: ignore[union-attr]


def test_extends(folder: Path) -> None:
    p = program(
        folder,
        """extends "base.nl" {
  param dim = 32
  level mem { retain 0; chunk 4; memory m : vector { value x * 2 } }
  flow block { b = a; return b }
  loss = dim
}""",
    )
    found = named(p)
    assert print_nl(T.Spec(1, (found["mem"], found["block"]), p.spec.source)).split("\n\n")[1:] == [
        """level mem(x, width = 4) {
  every  1 token
  memory m : vector { key x; value x * 2 }
  key    x
  retain 0
  chunk  4
  return y
}""",
        "flow block(x) {\n  a = mem(x)\n  b = a\n  return b\n}\n",
    ]
    assert found["dim"].default == T.Number(32)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "change, help",
    [
        ("level mme { chunk 1 }", "did you mean `mem`?"),
        ("param dimm = 1", "did you mean `dim`?"),
        ("level mem { memory n : matrix { key x } }", "did you mean `m`?"),
    ],
)
def test_extends_changes_only_what_exists(folder: Path, change: str, help: str) -> None:
    (d,) = wrong(folder, f'extends "base.nl" {{ {change} }}')
    assert d.code == "NF016"
    assert d.help in (help, "a level derived by `extends` keeps its memories")


def test_circles_are_shown(folder: Path) -> None:
    (folder / "b.nl").write_text('nestflow 1\nuse "c.nl"\n')
    (folder / "c.nl").write_text('nestflow 1\nextends "main.nl" { }\n')
    (d,) = wrong(folder, 'use "b.nl"')
    assert d.code == "NF012" and "main.nl → b.nl → c.nl → main.nl" in d.message


@pytest.mark.parametrize(
    "target", ["../secret.nl", "/etc/secret.nl", "sub/../../secret.nl", "..\\secret.nl", "\\\\host\\x.nl"]
)
def test_files_outside_are_refused(folder: Path, target: str) -> None:
    inner = folder / "inner"
    inner.mkdir()
    (folder / "secret.nl").write_text("nestflow 1\nx = 1\n")
    (d,) = wrong(inner, f'use "{target}"')
    assert d.code == "NF011" and d.span is not None


def test_links_do_not_lead_outside(folder: Path) -> None:
    inner = folder / "inner"
    inner.mkdir()
    (inner / "link.nl").symlink_to(folder / "base.nl")
    assert wrong(inner, 'use "link.nl"')[0].code == "NF011"
    assert program(inner, 'use "link.nl"', root=folder).body


def test_mistakes_in_a_used_file_are_shown_there(folder: Path) -> None:
    (folder / "bad.nl").write_text("nestflow 1\nx = a b\n")
    (d,) = wrong(folder, 'use "bad.nl"')
    assert d.code == "NF111" and d.span is not None and d.span.source.name.endswith("bad.nl")
    (d,) = wrong(folder, 'use "missing.nl"')
    assert d.code == "NF001" and d.span is not None and d.span.source.name.endswith("main.nl")


def test_overrides(folder: Path) -> None:
    p = program(
        folder,
        'use "base.nl"',
        overrides={
            "dim": "2 * 64",
            "depth": 3,
        },
    )
    assert dict(p.overrides) == {"dim": T.Binary("*", T.Number(2), T.Number(64)), "depth": T.Number(3)}
    (d,) = wrong(folder, 'use "base.nl"', overrides={"dmi": 3})
    assert (d.code, d.help) == ("NF017", "did you mean `dim`?")
    codes = [d.code for d in wrong(folder, 'use "base.nl"', overrides={"dim": "2 *", "depth": ""})]
    assert codes == ["NF112", "NF018"]


def test_targets(folder: Path) -> None:
    assert load(BASE).body == load(folder / "base.nl").body
    assert load({"nestflow": 1, "let": {"x": 1}}).body == (T.Assign(("x",), T.Number(1)),)
    assert load("nestflow: 1\nlet: {x: 1}").body == (T.Assign(("x",), T.Number(1)),)
    for target, code in (
        ("no_such_spec", "NF009"),
        ("a/b", "NF009"),
        ("", "NF102"),
        (str(folder / "none.nl"), "NF001"),
    ):
        with pytest.raises(NestflowError) as caught:
            load(target)
        assert caught.value.diagnostics[0].code == code


@pytest.fixture
def own_specs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set of shipped specs made for the test."""
    for folder in ("architectures", "optimizers", "blocks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "architectures" / "hope.nl").write_text(
        "nestflow 1\nuse optimizers.adam\nflow model(x) { return x }\nflow hope(x) { return x }\n"
    )
    (tmp_path / "architectures" / "twin.nl").write_text("nestflow 1\nx = 1\n")
    (tmp_path / "blocks" / "twin.nl").write_text("nestflow 1\nflow twin(x) { return x }\nflow swiglu(x) { return x }\n")
    (tmp_path / "optimizers" / "adam.nl").write_text("nestflow 1\noptimizer adam(lr) { step -lr * g }\n")
    shipped.clear()
    monkeypatch.setattr(shipped, "specs_dir", lambda: tmp_path)
    yield tmp_path
    shipped.clear()


def test_shipped_names(own_specs: Path) -> None:
    assert shipped_names() == ["architectures.hope", "architectures.twin", "blocks.twin", "optimizers.adam"]
    assert find_shipped("hope")[0] == find_shipped("architectures.hope")[0] == "architectures.hope"
    for name, code in (("twin", "NF010"), ("hop", "NF009"), ("optimizers.adm", "NF009")):
        with pytest.raises(NestflowError) as caught:
            find_shipped(name)
        assert caught.value.diagnostics[0].code == code
    assert "did you mean" in str(caught.value)


def test_words_of_shipped_specs(own_specs: Path) -> None:
    p = load("hope")
    assert {"adam", "model", "hope"} <= set(named(p))
    for word, found in (
        ("adam", True),
        ("swiglu", True),
        ("twin", True),
        ("hope", True),
        ("model", False),
        ("nothing", False),
    ):
        template = p.shipped(word)
        assert (template is not None) is found
        assert template is None or template.name == word


def test_every_shipped_spec_loads() -> None:
    assert specs_dir().is_dir()
    for name in shipped_names():
        assert load(name).body, name
