"""One update of the weights of a level: one by one, small ones in lists, or in step where a number goes over all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nestflow.bundle.step_level import NEEDS_OBJECTIVE, Fact, Level, mistake
from nestflow.ops.many import Many, bunches
from nestflow.ops.rules import state_dtype


def learn(
    level: type[Level],
    ready: list[tuple[Tensor, Tensor, dict[str, Any], dict[str, Any], Fact, Tensor | None]],
    together: bool,
    curvatures: Mapping[str, Tensor],
) -> None:
    """One update of all weights of a level that brought a gradient."""
    if together and len(ready) > 1:
        alone = []
        for bunch in bunches(ready):
            if len(bunch) == 1:
                alone += bunch
                continue
            w, g = (Many([one[i] for one in bunch]) for i in (0, 1))
            states = {k: Many([one[2][k] for one in bunch]) for k, v in bunch[0][2].items() if isinstance(v, Tensor)}
            level.update(w, g, bunch[0][2] | states, bunch[0][3], bunch[0][4])
        ready = alone
    runs = []
    for w, grad, state, group, fact, gram in ready:
        exact = state_dtype(w.dtype) == w.dtype
        work = w if exact else w.float()  # half precision: the whole update in float32, rounded once
        extra = {"gram": gram} if level.reads_inputs else {}
        if level.reads_curvature:
            extra["curvature"] = curvatures.get(fact.path)
            if extra["curvature"] is None and level.curvature_due(state["step"]):
                raise mistake("NF543", *NEEDS_OBJECTIVE)
        runs.append((w, work, level.update(work, grad, state, group, fact, **extra)))
        if not level.collective and not exact:
            w.copy_(work)
    if not level.collective:
        return
    asked = [next(run) for _, _, run in runs]
    while asked:
        number = asked[0][0]([value for _, value in asked])
        answers, asked = [number.to(w.device) for w, _, _ in runs], []
        for (w, work, run), answer in zip(runs, answers):
            try:
                asked.append(run.send(answer))
            except StopIteration:
                if work is not w:
                    w.copy_(work)


__all__ = ["learn"]
