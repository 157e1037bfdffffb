"""`optim.py`: one torch.optim.Optimizer for all levels on the step clock, as readable source.

Each level becomes a class that holds its period, its weights and its update rule as torch code; a level whose rule
reads the same as an earlier one's inherits it.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterable
from dataclasses import replace

from nestflow.diagnostics.core import fail
from nestflow.emit.rules.parts import place
from nestflow.emit.rules.step import RuleCode, write_rule
from nestflow.emit.writer import plain
from nestflow.graph.globs import matches
from nestflow.graph.model import LevelGraph, StepLevel, WeightSpec
from nestflow.ir import ops
from nestflow.ir.node import Node, Type
from nestflow.ir.rule import DgdStep, Rule, SetWeight, Step
from nestflow.ops.many import METHODS

_RUNTIME = (
    "nestflow.ops.rules",
    "nestflow.ops.many",
    "nestflow.bundle.step_level",
    "nestflow.bundle.step_clocks",
    "nestflow.bundle.step_learn",
    "nestflow.bundle.step_optimizer",
)
_HEAD = '''"""{title}

{about}
"""

{imports}
'''


def class_name(name: str) -> str:
    """`cms_16` -> `Cms16`."""
    words = re.sub(r"\W", "_", name).split("_")
    text = "".join(w[:1].upper() + w[1:] for w in words if w)
    return text if text[:1].isalpha() and text not in ("Optimizer", "Level", "StepOptimizer") else f"Level{text}"


def compress(names: tuple[str, ...]) -> list[str]:
    """Names that differ in one run of numbers as one pattern: block.0.w, block.1.w -> block.{0..1}.w."""
    parts = {n: n.split(".") for n in names}
    families: dict[tuple[str, ...], list[int]] = {}
    for p in parts.values():
        at = next((i for i, x in enumerate(p) if x.isdecimal() and str(int(x)) == x), None)
        if at is not None:
            families.setdefault((*p[:at], "{}", *p[at + 1 :]), []).append(int(p[at]))
    result: list[str] = []
    seen: set[tuple[str, ...]] = set()
    for n, p in parts.items():
        at = next((i for i, x in enumerate(p) if x.isdecimal() and str(int(x)) == x), None)
        pattern = tuple(p) if at is None else (*p[:at], "{}", *p[at + 1 :])
        numbers = sorted(families.get(pattern, []))
        if len(numbers) < 2 or numbers != list(range(numbers[0], numbers[-1] + 1)) or "{" in n:
            result.append(n)
        elif pattern not in seen:
            seen.add(pattern)
            result.append(".".join(pattern).replace("{}", f"{{{numbers[0]}..{numbers[-1]}}}"))
    return result


def glob_matches(glob: str, path: str) -> bool:
    """Whether the path matches, or what is left of it from inside its first part."""
    return matches(glob, path) or matches(glob, path.partition(".")[2])


def _wrap(items: list[str], before: str, after: str, indent: str) -> list[str]:
    one = f"{indent}{before}{', '.join(items)}{after}"
    if len(one) <= 118:
        return [one]
    return [f"{indent}{before}", *(f"{indent}    {i}," for i in items), f"{indent}{after}"]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _dictionary(items: dict[str, str]) -> list[str]:
    return _wrap([f'"{k}": {v}' for k, v in items.items()], "return {", "}", " " * 8)


def _slots(code: RuleCode) -> list[str]:
    """The memories of one weight; those that only some weights have, under their condition."""
    everywhere = _dictionary({k: v for k, v in code.slots.items() if k not in code.present})
    if not code.present:
        return everywhere
    lines = [everywhere[0].replace("return {", "slots = {"), *everywhere[1:]]
    for condition in dict.fromkeys(code.present.values()):
        lines.append(f"        if {condition}:")
        own = [k for k, c in code.present.items() if c == condition]
        lines += [f'            slots["{k}"] = {code.slots[k]}' for k in own]
    return [*lines, "        return slots"]


def _functions(code: RuleCode) -> list[str]:
    """The static methods of a level's class."""
    lines: list[str] = []

    def method(name: str, arguments: str, body: list[str]) -> None:
        lines.extend(["", "    @staticmethod", f"    def {name}({arguments}):", *body])

    if code.hypers:
        method("hypers", "fact", _dictionary(code.hypers))
    if code.schedules:
        if code.schedule_facts:
            lines.insert(0, f"    schedule_facts = {code.schedule_facts!r}")
        method("schedule", "tick, total, every, fact", _dictionary(code.schedules))
    if code.slots:
        method("slots", "w, fact", _slots(code))
    arguments = "w, g, state, group, fact" + (", gram" if code.reads_inputs else "")
    if code.curvature:
        arguments += ", curvature"
        if code.curvature != "True":
            method("curvature_due", "t", [f"        return {code.curvature}"])
    if code.update:
        method("update", arguments, ["        " + x for x in code.update])
    if code.evaluate:
        method("evaluate", "w, state, group, fact", ["        " + x for x in code.evaluate])
    flags = [
        f"    {name} = True"
        for name, on in (
            ("collective", code.collective),
            ("evaluates", bool(code.evaluate)),
            ("reads_inputs", code.reads_inputs),
            ("normalize", code.normalize),
            ("elementwise", elementwise(code)),
            ("reads_curvature", bool(code.curvature)),
        )
        if on
    ]
    if code.shared:
        flags.append(f"    shared = {code.shared!r}")
    return flags + lines


def elementwise(code: RuleCode) -> bool:
    """Whether the update asks nothing of a weight but arithmetic that `foreach` functions have."""
    text = _without_places("\n".join(code.update))
    if code.collective or code.reads_inputs or code.curvature or re.search(r"\b(fact|torch)\b", text):
        return False
    if any(start.startswith(("torch.", "number_of")) for start in code.slots.values()):  # a memory that is one number
        return False
    helpers = any(re.search(rf"\b{h}\(", text) for h in code.helpers)
    return not helpers and set(re.findall(r"\.([a-z]\w*)\(", text)) <= METHODS


def _without_places(text: str) -> str:
    """Two rules are the same if they differ only in where they stand in the text."""
    return re.sub(r"(?m)^ *# \S+:\d+\n|  # \S+:\d+$", "", text)


def _docstring(paragraphs: list[str]) -> list[str]:
    """Lines of a docstring: the first paragraph, then the others below an empty line."""
    first, *rest = [_comment(p) for p in paragraphs]
    lines = textwrap.wrap(first, 110) or [""]
    body = [line for p in rest for line in (textwrap.wrap(p, 110) or [""])]
    lines += ["", *body] if body else []
    end = [] if len(lines) == 1 else ['    """']
    lines = ['"""' + lines[0], *lines[1:]]
    return [f"    {x}".rstrip() for x in lines[:-1]] + [f"    {lines[-1]}" + ('"""' if not end else "")] + end


def _comment(text: str) -> str:
    return " ".join(plain(text).split())


class RuleFile:
    """Classes of update rules as they are written, one for each level. taken: names that no class may have."""

    def __init__(self, taken: Iterable[str] = (), unit: str = "step") -> None:
        self.taken, self.unit = frozenset(taken), unit
        self.blocks: list[str] = []
        self.helpers: set[str] = set()
        self.math = False
        self.classes: list[str] = []
        self.with_heads: dict[str, bool] = {}
        self.copies: dict[str, int] = {}
        self.known: dict[str, str] = {}  # functions of a rule -> the class that has them

    def level(
        self,
        rule: Rule,
        name: str,
        every: int,
        weights: list[str] | None,
        per_head: list[str],
        inputs: list[str],
        code: RuleCode,
        note: str,
        doc: str | None,
        copies: int = 0,
    ) -> None:
        """One level's class."""
        title = class_name(name)
        base_title, n = title, 1
        while title in self.classes or title in self.taken:
            n += 1
            title = f"{base_title}{n}"
        functions = "\n".join(_functions(code))
        base = self.known.setdefault(_without_places(functions), title)
        summary = (
            f"every {every} {self.unit}{'s' if every != 1 else ''}: {rule.text}" if weights is not None else rule.text
        )
        lines = [f"class {title}({'Level' if base == title else base}):" + (f"  # {note}" if note else "")]
        lines += _docstring([summary, *(doc or "").splitlines()])
        lines += ["", f"    name = {_quoted(name)}"]
        if every != 1 or base != title:
            lines.append(f"    every = {every}")
        if copies or (base != title and copies != self.copies[base]):
            lines.append(f"    copies = {copies}")
        self.copies[title] = copies
        if weights is not None:
            lines += _wrap([_quoted(w) for w in weights], "weights = expand(", ")", "    ")
        if base == title:
            self.with_heads[title] = bool(per_head)
        if per_head:
            lines += _wrap([_quoted(w) for w in per_head], "per_head = frozenset(expand(", "))", "    ")
        elif self.with_heads[base]:
            lines.append("    per_head = frozenset()")
        if inputs or (base != title and code.reads_inputs):
            lines += _wrap([_quoted(w) for w in inputs], "inputs = frozenset(expand(", "))", "    ")
        if base == title and functions:
            lines.append(functions)
        self.helpers |= code.helpers
        self.math |= code.needs_math
        self.classes.append(title)
        self.blocks.append("\n".join(lines))

    def text(self, title: str, about: str, single_objective: bool) -> str:
        """The whole file."""
        body = "\n\n\n".join(self.blocks)
        runtime = ["StepOptimizer"] + (["Level"] if self.classes else []) + (["expand"] if "expand(" in body else [])
        imports = ["import math", ""] if self.math else []
        if "torch." in body:
            imports += ["import torch", ""]
        imports.append(f"from nestflow.bundle.step_optimizer import {', '.join(sorted(runtime))}")
        if self.helpers:
            imports.append(f"from nestflow.ops.rules import {', '.join(sorted(self.helpers))}")
        tail = [
            "class Optimizer(StepOptimizer):",
            f'    """{title}"""',
            "",
            f"    levels = ({', '.join(self.classes)}{',' if len(self.classes) == 1 else ''})",
        ]
        if not single_objective:
            tail.append(
                "    single_objective = False  # their gradients come from different losses: use the bundle's `step`"
            )
        head = _HEAD.format(title=title, about=about, imports="\n".join(imports))
        return head + "\n\n" + (body + "\n\n\n" if body else "") + "\n".join(tail) + "\n"


def _per_level(
    level: StepLevel, weights: dict[str, WeightSpec], code: RuleCode
) -> tuple[list[str], list[str], list[str]]:
    """Patterns of the level's weights, of those with heads, of those whose inputs its rule reads."""
    own = tuple(level.weights)
    heads = tuple(n for n in own if weights[n].heads)
    inputs = tuple(n for n in own if code.reads_inputs and weights[n].multiplies and glob_matches(code.only, n))
    return compress(own), compress(heads), compress(inputs)


def emit_optim(graph: LevelGraph, standalone: bool = False) -> str:
    """The source of `optim.py`: a module with a class `Optimizer(weights, total_steps=None, **settings)`.

    standalone: what it would import from nestflow is written into it, so that it needs torch alone.
    Levels with `every never` are not in it. Raises NestflowError NF547: an operation without a step-clock form.
    """
    file = RuleFile()
    weights = {w.path: w for w in (*graph.weights, *graph.kept)}
    learning = [level for level in graph.step_levels if level.rule is not None and level.inner is None]
    for level, rule in ((x, folded(x)) for x in learning):
        if rule is None:
            continue
        code = write_rule(rule)
        file.level(
            rule,
            level.name,
            level.every,
            *_per_level(level, weights, code),
            code,
            place(level.span),
            level.doc,
            level.copies,
        )
    objectives = {id(level.objective) for level in learning}
    about = (
        "Written by nestflow from the spec; the code that runs. w, g: a weight and its gradient, summed over the\n"
        "ticks since the last update. Memories are changed in place, in torch.optim's order of operations."
    )
    source = file.text(f"The optimizer of `{_comment(graph.name)}`.", about, len(objectives) <= 1)
    return with_runtime(source) if standalone else source


def with_runtime(source: str) -> str:
    """A generated optimizer with the runtime it imports from nestflow written above its classes."""
    from importlib import import_module

    from nestflow.emit.standalone import collect

    head = "from __future__ import annotations\n"
    imports: set[str] = set()
    bodies: list[str] = []
    borrowed: list[tuple[str, str]] = []  # by the runtime, from modules that are not written out whole
    doc = ""
    for text in (*(inspect.getsource(import_module(m)) for m in _RUNTIME), source):
        lines = text.splitlines()
        nodes = ast.parse(text).body
        doc = ast.get_source_segment(text, nodes[0]) or ""
        own = {0}
        for i, node in enumerate(nodes):
            is_import = isinstance(node, (ast.Import, ast.ImportFrom))
            exported = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            if is_import and not (
                isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("nestflow", "__f"))
            ):
                imports.add(ast.unparse(node))
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nestflow.ops."):
                borrowed += [(node.module or "", a.name) for a in node.names if node.module not in _RUNTIME]
            if i == 0 or is_import or exported:
                own |= set(range(node.lineno - 1, node.end_lineno or node.lineno))
        bodies.append("\n".join(x for i, x in enumerate(lines) if i not in own).strip("\n"))
    functions, needed = collect(list(dict.fromkeys(borrowed)))
    imports |= needed - {"from __future__ import annotations"}
    bodies.insert(0, functions.strip("\n"))
    return "\n".join([doc, "", head, *sorted(imports), "", "", "\n\n\n".join(bodies), ""])


def folded(level: StepLevel) -> Rule | None:
    """The level's rule with `retain` and `project` as statements of it: the first step is Δ + (r − 1) w, and in the end
    the weight is set to what `project` makes of it."""
    rule, w = level.rule, ops.leaf("w", Type(like=True))
    if rule is None:
        return None
    program = list(rule.program)
    if level.retain is not None:
        if any(isinstance(s, DgdStep) for s in program):
            raise fail("NF547", f"`retain` beside `dgd` in level `{level.name}`", level.span, "decay in another level")
        kept = level.retain
        less = ops.const(float(kept.value) - 1) if kept.op == "const" else ops.binary("sub", kept, ops.const(1.0))
        less = ops.binary("mul", less, w)
        seen: list[Node | None] = []  # the first step of each weight: under a condition that is that of some weights
        for i, s in enumerate(program):
            if isinstance(s, Step) and s.where not in seen and None not in seen:
                program[i] = replace(s, value=ops.binary("add", s.value, less))
                seen.append(s.where)
    if rule.project is not None:
        program.append(SetWeight(rule.project, rule.span))
    return replace(rule, program=tuple(program), project=None)


def emit_rule(rule: Rule, name: str) -> str:
    """The source of a module whose class `Optimizer(params, **settings)` puts one rule on any parameters."""
    file = RuleFile()
    code = write_rule(rule)
    file.level(rule, "optimizer", 1, None, [], [], code, place(rule.span), None)
    about = "Written by nestflow from the spec; the code that runs. w, g: a weight and its gradient."
    return file.text(f"The optimizer `{_comment(name)}`.", about, True)


__all__ = ["RuleFile", "compress", "emit_optim", "emit_rule"]
