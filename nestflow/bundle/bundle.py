"""A compiled spec: module, optimizer, losses, streams, the interpreter, files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nestflow._python import allowed
from nestflow.bundle.inputs import by_name, checked
from nestflow.bundle.lasting import beside_them, kept_by, lasting_slots
from nestflow.bundle.module import Module
from nestflow.bundle.origin import revive
from nestflow.bundle.settings import whole
from nestflow.bundle.source import load_source
from nestflow.bundle.state import State
from nestflow.bundle.step import Ticker
from nestflow.bundle.step_optimizer import StepOptimizer
from nestflow.diagnostics.core import fail
from nestflow.emit.model import objectives
from nestflow.graph.model import LevelGraph, named_level
from nestflow.ir.node import Node, walk


class Stream:
    """Sequences that go on from call to call: `feed` takes the next ticks of every row and gives their output.

    However the ticks are split, the outputs are those of the whole sequence. No gradients are kept.
    """

    def __init__(self, module: Module, batch: int = 1) -> None:
        self.module, self.batch = module, whole(batch, "the number of rows", 1)
        with torch.no_grad():
            self.state: State = module.initial_state(self.batch)

    @torch.no_grad()
    def feed(self, *args: Any, **inputs: Any) -> Tensor:
        """The output for the next ticks. Raises NestflowError NF501 to NF507."""
        out, self.state = self.module.run(self.state, *args, training=False, **inputs)
        return out

    @torch.no_grad()
    def reset(self, rows: Iterable[int] | int | None = None) -> None:
        """Begin rows anew (all of them by default); the others go on where they are."""
        given = range(self.batch) if rows is None else rows if isinstance(rows, Iterable) else [rows]
        which = sorted({whole(r, "a row") for r in given})
        self.state = self.state.restart(which, self.module._begin(len(which), which))

    def begin_sequence(self, rows: Iterable[int] | int | None = None) -> None:
        """A new sequence begins in these rows (all of them by default). What is kept `per stream` goes on; all else
        begins anew, as in `reset`."""
        given = range(self.batch) if rows is None else rows if isinstance(rows, Iterable) else [rows]
        self.state = self.module.begin_sequence(self.state, [whole(r, "a row") for r in given])

    @property
    def t(self) -> tuple[int, ...]:
        """Ticks that each row has seen."""
        return self.state.t


class Bundle:
    """What `nestflow.compile` gives. `module` and `optimizer` are torch's, usable in any training loop.

    graph: the level graph. plan: how each level was lowered. source: the code of the module, the code that runs.
    spec: the whole spec as text, used parts included. overrides: params set from outside. extra: data that was saved.
    """

    def __init__(
        self,
        graph: LevelGraph,
        plan: Any,
        source: str,
        *,
        spec: str = "",
        overrides: Mapping[str, Any] | None = None,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        networks: Mapping[str, torch.nn.Module] | None = None,
    ) -> None:
        self.graph, self.plan, self.source, self.spec, self.seed = graph, plan, source, spec, seed
        self.overrides = dict(overrides or {})
        self.extra: dict[str, Any] = {}
        self.networks = dict(networks or {})
        self.module = Module(graph, load_source(source, graph.name), seed, dtype, device, self.networks)
        self.module.__dict__["_origin"] = (graph.name, spec, self.overrides, seed, self.networks, allowed())
        self._objectives = objectives(graph)
        self._total_steps: int | None = None

    def __reduce__(self) -> Any:
        """Pickles as its spec, its module and its optimizer's state; copies are made the same way."""
        state = {
            "module": self.module,
            "optimizer": self.optimizer.state_dict() if "optimizer" in self.__dict__ else None,
            "total_steps": self._total_steps,
            "extra": self.extra,
        }
        return revive, (self.module.__dict__["_origin"],), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.module, self.extra = state["module"], state["extra"]
        self.networks = self.module.__dict__["_networks"]
        self._total_steps = state["total_steps"]
        if state["optimizer"] is not None:
            self.optimizer.load_state_dict(state["optimizer"])

    @property
    def name(self) -> str:
        return self.graph.name

    @cached_property
    def params(self) -> dict[str, Any]:
        """The spec's params by name, as they stand."""
        return {p.name: p.value for p in self.graph.params}

    # ---- the step clock

    @property
    def _learns(self) -> bool:
        return any(level.rule is not None for level in self.graph.step_levels)

    @cached_property
    def optim_source(self) -> str:
        """The code of the optimizer."""
        from nestflow.emit.optim import emit_optim

        return emit_optim(self.graph)

    @property
    def token_source(self) -> str | None:
        """The code that computes one token of a stream; None where the module's own does."""
        from nestflow.emit.token import emit_token, has_token

        return emit_token(self.graph) if has_token(self.graph) else None

    @cached_property
    def optimizer(self) -> StepOptimizer:
        """One torch.optim.Optimizer for all levels on the step clock. Raises NF509 where none learns."""
        if not self._learns:
            raise fail(
                "NF509",
                f"`{self.name}` has no level on the step clock that learns, so there is nothing to optimise",
                help="add `level outer { every 1 step; memory weights(model); objective loss; update adamw(3e-4) }`",
            )
        program = load_source(self.optim_source, f"{self.name}_optim")
        with torch.inference_mode(False):  # what it keeps must be changed in place later
            made: StepOptimizer = program.Optimizer(
                {**self.module.weights, **self.module.kept}, total_steps=self._total_steps
            )
        self.module.__dict__["_on_train"] = made.train  # `eval` of a rule: other weights while the module evaluates
        self.module.__dict__["_on_move"] = made.follow_weights
        self.module.__dict__["_steps"] = made.steps
        return made

    def set_total_steps(self, steps: int) -> None:
        """The run's length in steps, for schedules without a `total` of their own."""
        self._total_steps = steps = whole(steps, "the number of steps", 1)
        if "optimizer" in self.__dict__:
            self.optimizer.set_total_steps(steps)

    def losses(self, batch: Mapping[str, Any], training: bool | None = None) -> dict[str, Tensor]:
        """The distinct objectives of the step clock, by the name of the first level that has each."""
        return self.module.losses(training=training, **by_name(self.graph.inputs, (), batch))

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        """The objective of the levels on the step clock, to call `backward()` on.

        Raises NF510 where they minimise different ones (call `step`), NF509 where none learns.
        """
        if not self._objectives:
            raise fail(
                "NF509",
                f"`{self.name}` has no level on the step clock that learns from an objective, so it has no loss",
            )
        if len(self._objectives) > 1:
            raise fail(
                "NF510",
                "the levels of the step clock minimise different objectives: "
                + ", ".join(f"`{n}`" for n in self._objectives),
                help="`b.step(batch)` takes each level's gradient of its own objective; `b.losses(batch)` gives all",
            )
        (value,) = self.losses(batch).values()
        return value

    def step(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """One step of training: one tick of every level on the step clock, those of one objective together.

        The levels of an objective take their gradients at one state and then learn; the next objective is computed at
        what they have become. batch: the spec's inputs by name. Returns {"loss": the first objective, "losses": all by
        name, "levels": for each whether it learned now, its period, and its updates so far, "emitted": the mean of
        what `emit` publishes, by name}. The module is put in training mode.
        """
        optimizer = self.optimizer
        if not self._objectives:
            raise fail(
                "NF509",
                f"no level of `{self.name}` has an objective, so a batch alone brings no gradients",
                help="its levels learn from your own: `loss.backward()`, then `b.optimizer.step()`",
            )
        self.module.train()
        inputs = checked(
            self.graph.inputs, by_name(self.graph.inputs, (), batch), self.module.dtype, self.module.device
        )
        with torch.inference_mode(False), torch.enable_grad():  # a step learns, whatever the caller switched off
            inputs = {n: x.clone() if x.is_inference() else x for n, x in inputs.items()}
            return Ticker(self.graph, self.module, optimizer).tick("step", inputs)

    def tick(self, clock: str, batch: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One tick of a clock that the spec declares and the caller ticks: `b.tick("task")` when a task has ended.

        The levels of that clock, and of clocks that it ticks, learn from the moment. batch: where their objectives read
        the model's inputs. Returns what `step` does. Raises NF519 for a clock that is not declared or ticks by itself.
        """
        own = [c.name for c in self.graph.clocks if c.base == c.name]
        if clock not in own:
            known = ", ".join(f"`{n}`" for n in own) or "none"
            what = (
                "is ticked by another clock" if any(c.name == clock for c in self.graph.clocks) else "is not declared"
            )
            message = f"the clock `{clock}` {what}"
            raise fail("NF519", message, help=f"clocks that the caller ticks: {known}; `step` is ticked by `b.step`")
        optimizer = self.optimizer
        with torch.inference_mode(False), torch.enable_grad():
            inputs = None
            if batch is not None:
                named = by_name(self.graph.inputs, (), batch)
                inputs = checked(self.graph.inputs, named, self.module.dtype, self.module.device)
            return Ticker(self.graph, self.module, optimizer).tick(clock, inputs)

    # ---- running

    def __call__(self, *args: Any, **inputs: Any) -> Tensor:
        """`bundle(tokens=x)` is `bundle.module(tokens=x)`."""
        return self.module(*args, **inputs)

    def stream(self, batch: int = 1) -> Stream:
        """Fresh streams, `batch` rows, to be fed token by token or in blocks."""
        return Stream(self.module, batch)

    def reference(self) -> Any:
        """The interpreter that defines the meaning, on this bundle's weights: slow, tick by tick."""
        from nestflow.reference import Reference

        return Reference(
            self.graph,
            {**self.module.weights, **beside_them(self.module.kept)},
            networks=self.networks,
            seed=self.seed,
            step=self.module.draws,
            lasting=kept_by(self.module.kept),
        )

    def reference_steps(self) -> Any:
        """The interpreter of the slow clocks, from these weights on: `step(batch)` and `tick(clock)`, tick by tick."""
        from nestflow.reference import Slow

        tensors = {**self.module.weights, **beside_them(self.module.kept)}
        return Slow(self.graph, tensors, seed=self.seed, lasting=kept_by(self.module.kept))

    # ---- files and views

    def save(self, path: str | Path, extra: Mapping[str, Any] | None = None) -> Path:
        """Write the bundle to a folder, whole or not at all. extra: JSON data that `load` gives back as `extra`."""
        from nestflow.bundle.files import save

        if extra is not None and not isinstance(extra, Mapping):
            raise fail("NF516", f"`extra` is a mapping from names to data, and this is a {type(extra).__name__}")
        return save(self, Path(path), dict(extra or {}))

    def write_source(self, folder: str | Path) -> list[Path]:
        """Write `model.py` and, where levels learn on the step clock, `optim.py`.

        Raises NF032 where a file of that name stands there that nestflow has not written.
        """
        folder = Path(folder)
        files = {"model.py": self.source} | ({"optim.py": self.optim_source} if self._learns else {})
        for name in files:
            if not _is_generated(folder / name):
                raise fail(
                    "NF032",
                    f"`{folder / name}` exists already, and nestflow did not write it",
                    help="choose another folder: nothing of yours is overwritten",
                )
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        return [folder / name for name in files]

    def standalone(self) -> str:
        """One file of Python that needs torch alone and gives the same numbers."""
        from nestflow.emit.standalone import emit_standalone

        if self.graph.networks:
            net = self.graph.networks[0].name
            raise fail(
                "NF565",
                f"`{self.name}` runs on a network of yours (`{net}`), which no file of ours holds",
                help="ship the bundle (`b.save`) beside the code of the network",
            )
        if "nestflow.ops.python" in self.source:
            raise fail(
                "NF565",
                f"`{self.name}` runs Python functions of yours, which no file of ours holds",
                help="ship the bundle (`b.save`) beside their code",
            )
        if lasting_slots(self.graph):
            raise fail("NF490", "a file for a model with a memory `per model` is not built yet", help="`b.save`")
        own = {x.name for x in self.graph.step_levels if x.state and x.inner is None}
        if any(named_level(n) in own for n in walk(*self._outputs())):
            what = "a file for a model whose output reads tensors that a level keeps"
            raise fail("NF490", f"{what} is not built yet", help="`b.save`")
        return emit_standalone(self.graph, self.plan)

    def _outputs(self) -> list[Node]:
        return [self.graph.output] if self.graph.output is not None else []

    def how(self) -> dict[str, str]:
        """Row of the level table -> the pattern by which it was lowered (`nestflow explain SPEC` says more)."""
        from nestflow.graph.describe import row_name

        return {
            row_name(level.instance, m.memory): m.pattern for level in self.plan.levels.values() for m in level.memories
        }

    def to(self, *args: Any, **kwargs: Any) -> Bundle:
        """Move the module (device, dtype), and with it what the optimizer keeps."""
        self.module.to(*args, **kwargs)
        return self

    def __str__(self) -> str:
        """The level table."""
        import io

        from rich.console import Console

        from nestflow.view.table import level_table

        text = io.StringIO()
        console = Console(file=text, width=120, color_system=None)
        console.print(level_table(self.graph, self.how() or None, width=118))
        return text.getvalue().rstrip()

    def __repr__(self) -> str:
        return f"<nestflow.Bundle {self.name}: {sum(w.numel() for w in self.module.weights.values()):,} weights>"


def _is_generated(file: Path) -> bool:
    """Whether a file may be written again: it is not there, or its head says that nestflow wrote it."""
    if not file.exists():
        return True
    try:
        with file.open(encoding="utf-8", errors="replace") as f:
            head = f.read(1000)
    except OSError:
        return False
    return "generated by nestflow" in head or "Written by nestflow" in head or not head
