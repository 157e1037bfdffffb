"""A shipped optimizer, or one of your own, on any parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from nestflow._python import allowed, allowing
from nestflow.bundle.source import load_source
from nestflow.bundle.step_level import NEEDS_INPUTS, mistake
from nestflow.bundle.step_optimizer import StepOptimizer
from nestflow.diagnostics.core import fail
from nestflow.emit.optim import emit_optim, emit_rule
from nestflow.graph.model import LevelGraph
from nestflow.ir.rule import Rule


def optimizer_class(graph: LevelGraph) -> type[StepOptimizer]:
    """The class of a level graph's optimizer: `cls(weights, total_steps=None, **settings)`."""
    return load_source(emit_optim(graph), f"{graph.name}_optim").Optimizer


def rule_class(rule: Rule, name: str = "optimizer") -> type[StepOptimizer]:
    """The class that puts one rule on any parameters."""
    return load_source(emit_rule(rule, name), name).Optimizer


def optimizer(target: str | Mapping[str, Any], params: Iterable[Any] | None = None, **settings: Any) -> StepOptimizer:
    """A torch.optim.Optimizer from a spec: `nestflow.optimizer("optimizers.adam", module.parameters(), lr=3e-3)`.

    With a spec of levels on a network of yours (`extern net`), `nestflow.optimizer("levels.nl", net=model)`: then
    settings are the spec's params, and each level owns the parameters that it names.

    target: a shipped name (`"adam"`, `"optimizers.m3"`), a file ending in .nl, .yaml or .yml, or the text or dict of a
    spec with one optimizer. params: what torch.optim takes: parameters, (name, parameter) pairs, or dicts of groups
    with settings of their own. settings: the optimizer's slots; `foreach=False` updates small weights one by one too.
    Raises NestflowError for an unknown name or setting, for networks that are not as the spec says (NF440 to NF446,
    NF560, NF561), and for a rule that needs more than gradients (dgd).
    """
    if isinstance(target, str) and target.rpartition(".")[2] == "dgd":
        raise mistake("NF543", *NEEDS_INPUTS)
    own = {k: settings.pop(k) for k in ("total_steps", "foreach") if k in settings}
    with allowing(bool(settings.pop("allow_python", False)) or allowed()):
        return _made(target, params, own, settings)


def _made(
    target: str | Mapping[str, Any], params: Iterable[Any] | None, own: dict[str, Any], settings: dict[str, Any]
) -> StepOptimizer:
    from nestflow.graph.build import optimizer_rule

    if params is None:
        return _of_levels(target, own, settings)
    rule = optimizer_rule(target, dict(settings))
    name = target if isinstance(target, str) and "\n" not in target else rule.text
    made = rule_class(rule, name.rpartition("/")[2].removesuffix(".nl")[:40])(params, **own)
    _check_shapes(rule, made)
    return made


def _check_shapes(rule: Rule, made: StepOptimizer) -> None:
    """Raise NF301 where the rule has an operation that does not fit one of the parameters."""
    from nestflow.graph.rules.shapes import check_rule

    shapes = {tuple(w.shape): n for g in made.param_groups for n, w in zip(g["names"], g["params"], strict=True)}
    check_rule(fail, rule, shapes, rule.span)


def _of_levels(
    target: str | Mapping[str, Any], options: Mapping[str, Any], settings: Mapping[str, Any]
) -> StepOptimizer:
    """The optimizer of a spec's levels on networks of the caller, who brings the gradients."""
    from nestflow.bundle.networks import facts_of, needed, parameters_of, settle, split
    from nestflow.graph.build import build
    from nestflow.language.resolve import load

    given, networks = split(settings)
    graph = build(load(target, given), facts_of(networks))
    if not graph.networks:
        raise mistake(
            "NF544",
            "the optimizer was given no parameters.",
            "pass `module.parameters()`, or write levels on a network: `extern net`, and `net=model`",
        )
    needed(graph, networks)
    own = next((w.path for w in (*graph.weights, *graph.kept) if w.role != "network"), None)
    objective = next((level for level in graph.step_levels if level.objective is not None), None)
    what = None if objective is None else f"an objective (level `{objective.name}`)"
    if own is not None:
        what = f"weights of its own (`{own}`)"
    if what is not None:
        raise mistake(
            "NF564",
            f"`{graph.name}` has {what}, and an optimizer alone learns from the gradients that you bring.",
            "compile it: `b = nestflow.compile(spec, net=model)`, then `b.step(batch)`",
        )
    if not any(level.rule is not None for level in graph.step_levels):
        raise mistake("NF509", f"`{graph.name}` has no level that learns, so there is nothing to optimise.", None)
    settle(graph, networks)
    return optimizer_class(graph)(parameters_of(graph, networks), **options)
