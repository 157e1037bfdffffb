"""A shipped optimizer, or one of your own, on any parameters."""

from __future__ import annotations

import hashlib
import linecache
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from nestflow.bundle.step_optimizer import StepOptimizer
from nestflow.emit.optim import emit_optim, emit_rule
from nestflow.graph.model import LevelGraph
from nestflow.ir.rule import Rule


def load_source(source: str, name: str) -> ModuleType:
    """The module that a generated source is. Tracebacks and debuggers show its lines; the same source is loaded once."""
    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    title = f"nestflow_generated_{''.join(c if c.isalnum() else '_' for c in name)}_{digest}"
    if title in sys.modules:
        return sys.modules[title]
    module = ModuleType(title)
    module.__file__ = f"<{title}.py>"
    linecache.cache[module.__file__] = (len(source), None, source.splitlines(keepends=True), module.__file__)
    exec(compile(source, module.__file__, "exec"), module.__dict__)  # the source is ours: no text of a user is code in it
    sys.modules[title] = module  # so that pickle and copy find the class
    return module


def optimizer_class(graph: LevelGraph) -> type[StepOptimizer]:
    """The class of a level graph's optimizer: `cls(weights, total_steps=None, **settings)`."""
    return load_source(emit_optim(graph), f"{graph.name}_optim").Optimizer


def rule_class(rule: Rule, name: str = "optimizer") -> type[StepOptimizer]:
    """The class that puts one rule on any parameters."""
    return load_source(emit_rule(rule, name), name).Optimizer


def optimizer(target: str, params: Iterable[Any], **settings: Any) -> StepOptimizer:
    """A torch.optim.Optimizer from a spec: `nestflow.optimizer("optimizers.adam", module.parameters(), lr=3e-3)`.

    target: a shipped name (`"adam"`, `"optimizers.m3"`), a file ending in .nl, .yaml or .yml, or the text of a spec with
    one optimizer. params: what torch.optim takes: parameters, (name, parameter) pairs, or dicts of groups with settings of
    their own. settings: the optimizer's slots.
    Raises NestflowError for an unknown name or setting, and for a rule that needs more than gradients (dgd).
    """
    from nestflow.graph.build import optimizer_rule

    total_steps = settings.pop("total_steps", None)
    rule = optimizer_rule(target, dict(settings))
    name = target if "\n" not in target else rule.text
    return rule_class(rule, name.rpartition("/")[2].removesuffix(".nl")[:40])(params, total_steps=total_steps)
