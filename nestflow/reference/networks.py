"""Networks of the caller in the interpreter: at each tick the network reads all that its inputs have been so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nestflow.diagnostics.core import fail
from nestflow.graph.state import memory_path
from nestflow.ir.node import Node

if TYPE_CHECKING:
    from nestflow.reference.tick import Frame


class Networks:
    """The caller's modules by name, run with the interpreter's weights; their buffers stay as they are."""

    def __init__(self, modules: Mapping[str, nn.Module], weights: Mapping[str, Tensor], training: bool) -> None:
        self.modules, self.weights, self.training = modules, weights, training

    def run(self, node: Node, inputs: Mapping[str, Tensor]) -> Any:
        """What the network gives for whole inputs: [B, T, ...] or [B, ...]."""
        name = node["network"]
        net = self.modules[name]
        own = {p.removeprefix(name + "."): w for p, w in self.weights.items() if p.startswith(name + ".")}
        tensors = {**{n: b.detach().clone() for n, b in net.named_buffers()}, **own}
        given = {n: x if a.type.clock else x.squeeze(1) for (n, x), a in zip(inputs.items(), node.args)}
        modes = {m: m.training for m in net.modules()}
        net.train(self.training)
        try:
            return functional_call(net, tensors, (), {**given, **dict(node["constants"])})
        finally:
            for m, flag in modes.items():
                m.training = flag

    def part(self, node: Node, result: Any) -> Tensor:
        """The tensor that a `network_result` takes out."""
        kind = node["field"]
        whole = not kind or (kind == "logits" and isinstance(result, Tensor))
        value = result if whole else result[kind] if isinstance(result, Mapping) else getattr(result, kind, None)
        if not isinstance(value, Tensor):
            raise fail("NF562", f"what `{node.args[0]['network']}` gives has no tensor `{kind or 'of its own'}`")
        return value.reshape(()) if kind == "loss" else value

    # tick by tick ----------------------------------------------------------------------------------

    def tick(self, frame: Frame, node: Node, xs: list[Tensor]) -> Tensor:
        """One tick: rows that have seen equally many ticks are read together."""
        tick, seen = frame.tick, dict[str, Tensor]()
        rows = tick.t.shape[0]
        for name, path, x, a in zip(node["names"], node["tails"], xs, node.args):
            x = x.expand(rows, *x.shape[1:])
            if a.type.clock:  # [B, 1, ticks, ...]
                full = memory_path(frame.instance.path, "", path)
                x = torch.cat([tick.state[full].to(x.dtype), x.unsqueeze(2)], 2)
                tick.put(full, x)
                x = x[:, 0]
            seen[name] = x
        results: list[tuple[Tensor, Any]] = []
        for t in sorted({int(n) for n in tick.t[:, 0]}):
            which = (tick.t[:, 0] == t).nonzero()[:, 0]
            given = {n: x[which, -t:] if a.type.clock else x[which] for (n, x), a in zip(seen.items(), node.args)}
            results.append((which, self.run(node, given)))
        frame.raw[id(node)] = results
        return tick.t.new_zeros(1, 1)

    def tick_result(self, frame: Frame, node: Node) -> Tensor:
        """The result at this tick, [B, 1, *features]."""
        values, order = [], []
        for which, result in frame.raw[id(node.args[0])]:
            value = self.part(node, result)
            if node["field"] == "loss":
                return value.reshape(1, 1)
            values.append(value[:, -1] if node.type.clock else value)
            order.append(which)
        back = torch.cat(order).argsort()
        return torch.cat(values)[back].unsqueeze(1)
