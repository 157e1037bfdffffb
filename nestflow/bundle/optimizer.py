"""A shipped optimizer, or one of your own, on any parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nestflow.bundle.source import load_source
from nestflow.bundle.step_level import NEEDS_INPUTS, mistake
from nestflow.bundle.step_optimizer import StepOptimizer
from nestflow.emit.optim import emit_optim, emit_rule
from nestflow.graph.model import LevelGraph
from nestflow.ir.rule import Rule


def optimizer_class(graph: LevelGraph) -> type[StepOptimizer]:
    """The class of a level graph's optimizer: `cls(weights, total_steps=None, **settings)`."""
    return load_source(emit_optim(graph), f"{graph.name}_optim").Optimizer


def rule_class(rule: Rule, name: str = "optimizer") -> type[StepOptimizer]:
    """The class that puts one rule on any parameters."""
    return load_source(emit_rule(rule, name), name).Optimizer


def optimizer(target: str | Mapping[str, Any], params: Iterable[Any], **settings: Any) -> StepOptimizer:
    """A torch.optim.Optimizer from a spec: `nestflow.optimizer("optimizers.adam", module.parameters(), lr=3e-3)`.

    target: a shipped name (`"adam"`, `"optimizers.m3"`), a file ending in .nl, .yaml or .yml, or the text or dict of a
    spec with one optimizer. params: what torch.optim takes: parameters, (name, parameter) pairs, or dicts of groups
    with settings of their own. settings: the optimizer's slots.
    Raises NestflowError for an unknown name or setting, and for a rule that needs more than gradients (dgd).
    """
    from nestflow.graph.build import optimizer_rule

    if isinstance(target, str) and target.rpartition(".")[2] == "dgd":
        raise mistake("NF543", *NEEDS_INPUTS)
    total_steps = settings.pop("total_steps", None)
    rule = optimizer_rule(target, dict(settings))
    name = target if isinstance(target, str) and "\n" not in target else rule.text
    return rule_class(rule, name.rpartition("/")[2].removesuffix(".nl")[:40])(params, total_steps=total_steps)
