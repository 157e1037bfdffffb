"""One file that needs torch alone: the generated module with the ops it uses written into it, and a small `Model`."""

from __future__ import annotations

import ast
import inspect
from dataclasses import replace
from importlib import import_module
from types import ModuleType

from nestflow.emit.model import emit_model
from nestflow.graph.model import LevelGraph
from nestflow.lowering.plan import Plan

_MODEL = '''class Model(nn.Module):
    """{title}

    Called with the inputs by name, batch first: `Model()({call})`. `run(state, ...)` goes on where an earlier call
    ended and gives (output, state). `load_state_dict` takes the weights of a bundle (`weights.safetensors`).
    """

    def __init__(self, seed: int = {seed}) -> None:
        super().__init__()
        self.seed, self.draws = seed, 0
        self.places = [(path, *plant(self, path, nn.Parameter(draw(path, shape, kind, a, b, maps, seed))))
                       for path, shape, kind, a, b, maps in WEIGHTS]

    def weights(self) -> dict[str, Tensor]:
        """The weights by path."""
        return {{path: module._parameters[leaf] for path, module, leaf in self.places}}

    def forward(self, {arguments}):
        return self.run(None, {keywords})[0]

    def run(self, state, {arguments}):
        """Output for the next ticks, and the state after them: (ticks seen, tensors by path), or None to begin."""
        w = self.weights()
        first = {first}
        dtype = next((x.dtype for x in w.values()), torch.float32)
        t0, tensors = state or (0, initial_state(w, first.shape[0], dtype, first.device, (self.seed, self.draws, None)))
        c = Context(w, tensors, t0, self.training, dtype, first.device)
        c.seed, c.step = self.seed, self.draws
        self.draws += self.training
        out = forward(c, {names})
        return out, (t0 + {ticks}, {{**tensors, **c.n}})
'''


def emit_standalone(graph: LevelGraph, plan: Plan, seed: int = 0) -> str:
    """The source of the file. Its numbers are those of the bundle."""
    levels = {path: replace(level, by=None) for path, level in plan.levels.items()}  # kernels need more than torch
    source = emit_model(graph, replace(plan, levels=levels))
    tree = ast.parse(source)
    wanted: list[tuple[str, str]] = [
        ("nestflow.ops.runtime", "Context"),
        ("nestflow.ops.weights", "draw"),
        ("nestflow.ops.weights", "plant"),
    ]
    kept: list[str] = []
    lines = source.split("\n")
    drop: set[int] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nestflow."):
            wanted += [(node.module or "", a.name) for a in node.names]
            drop |= set(range(node.lineno - 1, node.end_lineno or node.lineno))
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            drop |= set(range(node.lineno - 1, node.end_lineno or node.lineno))
    doc = tree.body[0].end_lineno or 0
    kept = [x for i, x in enumerate(lines) if i >= doc and i not in drop]
    ops, imports = collect(wanted)
    imports -= {"from torch import Tensor", "from torch import nn"}
    imports |= {"import torch", "import torch.nn.functional as F", "from torch import Tensor, nn"}
    head = "\n".join([*lines[:doc], "", "from __future__ import annotations", "", *_sorted_imports(imports)])
    rule = "# ---- " + "the model"
    return "\n".join(
        [
            head,
            "",
            "",
            "# ---- operations, from nestflow",
            "",
            ops,
            "",
            rule,
            "\n".join(kept).strip("\n"),
            "",
            "",
            _model(graph, seed),
        ]
    )


def _model(graph: LevelGraph, seed: int) -> str:
    from nestflow.emit.writer import identifier, plain, short_name

    names = [identifier(i.name) for i in graph.inputs]
    read = graph.needed
    needed = [n for n, i in zip(names, graph.inputs, strict=True) if i.name in read]
    ticked = [n for n, i in zip(names, graph.inputs, strict=True) if i.type.clock and i.name in read]
    return _MODEL.format(
        title=f"`{plain(graph.name)}` of {short_name(graph.source.name)}.",
        seed=seed,
        arguments=", ".join([*needed, *(f"{n}=None" for n in names if n not in needed)]),
        names=", ".join(names),
        keywords=", ".join(f"{n}={n}" for n in names),
        first=needed[0] if needed else "torch.zeros(1)",
        call=", ".join(f"{n}=..." for n in needed),
        ticks=f"{ticked[0]}.shape[1]" if ticked else "1",
    )


def _sorted_imports(imports: set[str]) -> list[str]:
    future = {"from __future__ import annotations"}
    plain = sorted(i for i in imports - future if i.startswith("import ") and "torch" not in i)
    rest = sorted(i for i in imports - future if i.startswith("from ") and "torch" not in i)
    torch = sorted((i for i in imports if "torch" in i), key=lambda i: (i.startswith("from"), i))
    return [*plain, *rest, "", *torch]


def collect(wanted: list[tuple[str, str]]) -> tuple[str, set[str]]:
    """Source of the wanted definitions and of all that they use, in order of need, and the imports of those modules."""
    done: dict[tuple[str, str], str] = {}
    imports: set[str] = set()
    tables: dict[str, _Definitions] = {}

    def visit(module: str, name: str) -> None:
        table = tables.setdefault(module, _Definitions(import_module(module)))
        if (module, name) in done:
            return
        if name in table.borrowed:
            visit(*table.borrowed[name])
            return
        if name not in table.nodes:
            return
        done[module, name] = ""  # marks it: functions may call each other
        node = table.nodes[name]
        for used in sorted({n.id for n in ast.walk(node) if isinstance(n, ast.Name)}):
            if used in table.imports:
                imports.add(table.imports[used])
            elif used != name and (used in table.nodes or used in table.borrowed):
                visit(module, used)
        del done[module, name]
        done[module, name] = table.text(node)

    for module, name in wanted:
        visit(module, name)
    names = [name for _, name in done]
    clash = {n for n in names if names.count(n) > 1}
    if clash:
        raise RuntimeError(f"operations of two modules share the names {sorted(clash)}")
    # plain values first: functions may use them as defaults
    values = [text for text in done.values() if not text.startswith(("def ", "class ", "@"))]
    functions = [text for text in done.values() if text.startswith(("def ", "class ", "@"))]
    return "\n\n\n".join(["\n".join(values), *functions] if values else functions) + "\n", imports


class _Definitions:
    """The top-level definitions of a module, what it imports, and from where in nestflow."""

    def __init__(self, module: ModuleType) -> None:
        self.lines = inspect.getsource(module).split("\n")
        self.nodes: dict[str, ast.stmt] = {}
        self.imports: dict[str, str] = {}
        self.borrowed: dict[str, tuple[str, str]] = {}
        self._read(ast.parse("\n".join(self.lines)).body)

    def _read(self, body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                self.nodes[node.name] = node
            elif isinstance(node, ast.Assign):
                self.nodes |= {t.id: node for t in node.targets if isinstance(t, ast.Name)}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                self.nodes[node.target.id] = node
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nestflow."):
                self.borrowed |= {a.asname or a.name: (node.module or "", a.name) for a in node.names}
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                for a in node.names:
                    text = ast.unparse(
                        ast.ImportFrom(node.module, [a], 0) if isinstance(node, ast.ImportFrom) else ast.Import([a])
                    )
                    self.imports[a.asname or a.name.split(".")[0]] = text

    def text(self, node: ast.stmt) -> str:
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(d.lineno for d in decorators)])
        return "\n".join(self.lines[first - 1 : node.end_lineno])
