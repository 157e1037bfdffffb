"""The JSON Schema takes every right spec in YAML, and refuses what `check` refuses for its form."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

import nestflow
from nestflow.cli.main import app
from nestflow.diagnostics.core import Source
from nestflow.editor import words
from nestflow.editor.schema import schema
from nestflow.language.fmt import convert_text
from nestflow.language.shipped import specs_dir
from nestflow.language.yaml_nodes import compose
from nestflow.language.yaml_sections import TOP_KEYS
from nestflow.vocabulary import WORDS

ROOT = Path(__file__).resolve().parents[2]
VALIDATOR = jsonschema.Draft7Validator(schema())
Spec = dict[str, Any]


def read(text: str) -> Spec:
    """The values of a YAML text as an editor sees them: the core schema of YAML 1.2."""
    return value(compose(Source("a.yaml", text))[0])


def value(n: Any) -> Any:
    if isinstance(n, yaml.MappingNode):
        return {k.value: value(v) for k, v in n.value}
    if isinstance(n, yaml.SequenceNode):
        return [value(x) for x in n.value]
    if n.style is None and n.value in ("", "~", "null"):
        return None
    if n.style is None and n.value in ("true", "false"):
        return n.value == "true"
    if n.style is None and re.fullmatch(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?", n.value):
        return float(n.value) if set(n.value) & set(".eE") else int(n.value)
    return n.value


def complaints(spec: Spec) -> list[str]:
    return [f"{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}" for e in VALIDATOR.iter_errors(spec)]


def test_it_is_a_schema() -> None:
    jsonschema.Draft7Validator.check_schema(schema())
    assert "$ref" not in {k for d in walk(schema()) if len(d) > 1 for k in d}, (
        "draft 7 ignores what stands beside a $ref"
    )


def walk(x: Any) -> list[Spec]:
    if isinstance(x, dict):
        return [x, *(d for v in x.values() for d in walk(v))]
    return [d for v in x for d in walk(v)] if isinstance(x, list) else []


@pytest.mark.parametrize("path", sorted(specs_dir().rglob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_yaml_is_right(path: Path) -> None:
    assert complaints(read(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "path", sorted([*specs_dir().rglob("*.nl"), *(ROOT / "examples").glob("*.nl")]), ids=lambda p: p.stem
)
def test_every_shipped_spec_is_right_in_yaml(path: Path) -> None:
    assert complaints(read(convert_text(path.read_text(encoding="utf-8"), path.name))) == []


@pytest.mark.parametrize(
    "name", ["everything.yaml", "titans.yaml", "everything.nl", "hope.nl", "optimizers.nl", "systems.nl"]
)
def test_every_construct_is_right(name: str) -> None:
    """The corpus holds every construct; only fields that the parser takes and `check` refuses are taken out."""
    text = (ROOT / "tests" / "language" / "corpus" / name).read_text(encoding="utf-8")
    spec = read(convert_text(text, name) if name.endswith(".nl") else text)
    unknown = [c for c in complaints(spec) if not re.search(r"'(every_|output_too|level)'", c)]
    assert unknown == []


def test_the_docs_are_right() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "yaml.md").read_text(encoding="utf-8"), re.DOTALL)
    assert complaints(read(text)) == []


GOOD: Spec = read(
    """
nestflow: 1
output: model(tokens)
params:
  dim: {value: 8, in: "[1, 64]", doc: width}
inputs:
  tokens: int[T] in [0, 256)
levels:
  fast(x):
    every: 1 token
    memory:
      mlp: {depth: 2, residual: true}
    key: x |> linear |> l2norm
    value: x |> linear
    query: x |> linear
    objective: l2
    update:
      momentum: {lr: 0.1, beta: 0.5}
  outer: {every: 1 step, memory: weights(model), objective: loss, update: adamw(1e-3)}
let:
  loss: cross_entropy(model(tokens), next(tokens))
flows:
  model(tokens):
    - x = embed(tokens, 256, dim)
    - x = x + fast(x)
    - return linear(x, 256)
"""
)


def test_the_good_one_is_good() -> None:
    assert complaints(GOOD) == []
    nestflow.check(GOOD)


def wrong(change: Callable[[Spec], Any]) -> Spec:
    spec = copy.deepcopy(GOOD)
    change(spec)
    return spec


WRONG: dict[str, Callable[[Spec], Any]] = {
    "a misspelt section": lambda s: s.update(levls=s.pop("levels")),
    "no version": lambda s: s.pop("nestflow"),
    "another version": lambda s: s.update(nestflow=2),
    "a misspelt field": lambda s: s["levels"]["fast(x)"].update(kye=s["levels"]["fast(x)"].pop("key")),
    "a field of another library": lambda s: s["levels"]["fast(x)"].update(loss="l2"),
    "every without a unit": lambda s: s["levels"]["fast(x)"].update(every=4),
    "a misspelt slot of an optimizer": lambda s: s["levels"]["fast(x)"].update(
        update={"momentum": {"lr": 1, "betta": 2}}
    ),
    "a misspelt slot of a memory": lambda s: s["levels"]["fast(x)"].update(memory={"mlp": {"dept": 2}}),
    "two calls in one": lambda s: s["levels"]["fast(x)"].update(update={"gd": {"lr": 1}, "adam": {"lr": 1}}),
    "a call without keywords": lambda s: s["levels"]["fast(x)"].update(update={"gd": 0.1}),
    "an entry without a value": lambda s: s["levels"]["fast(x)"].update(key=None),
    "a level that is a string": lambda s: s["levels"].update({"outer": "adam"}),
    "a head that is none": lambda s: s["levels"].update({"fast x": {}}),
    "a memory without a kind": lambda s: s["levels"]["fast(x)"].update({"memory m": {"key": "x"}}),
    "a part of a param": lambda s: s["params"]["dim"].update(valu=3),
    "a param without a value": lambda s: s["params"]["dim"].pop("value"),
    "an input of no type": lambda s: s["inputs"].update(tokens="real[T]"),
    "a flow without a body": lambda s: s["flows"].update({"f(x)": None}),
    "a statement with no such body": lambda s: s["flows"].update({"f(x)": [{"loop 3": ["return x"]}]}),
    "params that are a list": lambda s: s.update(params=["dim = 8"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_specs_are_refused_by_both(name: str) -> None:
    spec = wrong(WRONG[name])
    assert complaints(spec), "the schema takes it"
    with pytest.raises(nestflow.NestflowError):
        nestflow.check(spec)


@pytest.mark.parametrize("field", [f for f in words.field_records() if f not in ("return", *words.RULE_FIELDS)])
def test_every_field_is_offered_with_its_record(field: str) -> None:
    made = schema()["definitions"]["levelBody"]["properties"][field]
    assert words.field_records()[field].doc in made["description"]
    spec = wrong(lambda s: s["levels"]["fast(x)"].update({field + "x": "1"}))
    assert complaints(spec)


def test_every_word_and_section_is_known() -> None:
    made = schema()
    assert set(WORDS) <= set(made["definitions"]["call"]["properties"])
    assert set(TOP_KEYS) == set(made["properties"])
    for name, record in WORDS.items():
        slots = made["definitions"]["call"]["properties"][name]["properties"]
        assert {s.name for s in record.slots} <= set(slots)


def test_the_command_prints_it(tmp_path: Path) -> None:
    out = CliRunner().invoke(app, ["schema"])
    assert out.exit_code == 0 and json.loads(out.stdout) == schema()
    file = tmp_path / "s.json"
    assert "wrote" in CliRunner().invoke(app, ["schema", "-o", str(file)]).stdout
    assert json.loads(file.read_text(encoding="utf-8")) == schema()
    again = CliRunner().invoke(app, ["schema", "-o", str(file)])
    assert again.exit_code == 1 and "NF032" in again.stderr
