"""The memories of an update rule as lines of torch code: the new state in place, in the order of torch.optim."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nestflow.emit.numbers import Text, is_number
from nestflow.emit.rules.parts import key, reads, slot_is
from nestflow.emit.tensors import Tensors, complement, lerp
from nestflow.ir import ops
from nestflow.ir.node import Node, depends, walk
from nestflow.ir.rule import Rule, RuleSlot, SlotUpdate, Statement


class MemoryLines:
    """What a `RuleWriter` writes for a statement that updates a memory."""

    if TYPE_CHECKING:
        out: Any
        rule: Rule
        tensors: Tensors
        counts_updates: bool
        products: dict[str, str]
        slot_kinds: dict[str, RuleSlot]

        def _name(self, base: str) -> str: ...

        def _leaves(self) -> list[Node]: ...

        def _gain(self, value: Node) -> str: ...

    def _memory(self, s: SlotUpdate, later: list[Statement]) -> None:
        name = key(s.slot)
        if any(reads(x, slot_is("slot_old", s.slot)) for x in later):
            old = self._name(f"{name}_before")
            self.out.add(f"{old} = {name}.clone()")
            after = {n: old for n in self._leaves() if n.op == "slot_old" and n["name"] == s.slot}
        else:
            after = {}
        if s.every > 1:
            self._periodic(s, name)
        else:
            self._renew(name, s)
        self.tensors.forget_views(slot_is("slot_old", s.slot))
        self.tensors.bound.update(after)
        self.tensors.bound.update({n: name for n in self._leaves() if n.op == "slot_new" and n["name"] == s.slot})
        if s.slot in self.products:
            retain = next(
                n.args[1] for n in walk(*self.rule.nodes()) if n.op == "debias" and n.args[0]["name"] == s.slot
            )
            self.out.add(f"{self.products[s.slot]}.mul_({self.tensors.text(retain).text})")

    def _periodic(self, s: SlotUpdate, name: str) -> None:
        self.counts_updates = True
        pending = None
        if s.pending is not None and s.pending_value is not None:
            pending = key(s.pending)
            self.out.add(pending + self._gain(s.pending_value))
        outside = dict(self.tensors.bound)
        if pending is not None and s.pending_value is not None:
            self.tensors.bound[s.pending_value] = pending
            self.tensors.bound.update(
                {n: pending for n in self._leaves() if n.op in ("slot_old", "slot_new") and n["name"] == s.pending}
            )
        self.out.add(f"if t % {s.every} == 0:")
        self.out.indent += "    "
        self._renew(name, s)
        if pending is not None:
            self.out.add(f"{pending}.zero_()")
        self.out.indent = self.out.indent[:-4]
        self.tensors.bound = outside

    def _renew(self, name: str, s: SlotUpdate) -> None:
        """The memory's new state in place: retain · old + rate · value, as torch would write it."""
        value, tensors = s.value, self.tensors
        old = slot_is("slot_old", s.slot)
        if self.slot_kinds[s.slot].like == "number" or value.op != "add":
            self.out.add(f"{name}.copy_({tensors.text(value).text})")
            return
        mixed = lerp(value)
        keep, rest = _decay(value, s.slot)
        if keep is None and rest is not None and rest.op == "sub" and old(rest.args[1]):
            self._replace(name, rest.args[0], old)  # old + (v − old): it is replaced
            return
        towards = None if rest is None or keep is not None else self._towards(rest, s.slot)
        if towards is not None:
            self.out.add(f"{name}.lerp_({tensors.text(towards[0]).text}, {towards[1].text})")
            return
        if rest is None or depends(rest, old):
            if mixed is not None and old(mixed[0]) and not depends(mixed[1], old) and not depends(mixed[2], old):
                self.out.add(f"{name}.lerp_({tensors.text(mixed[1]).text}, {tensors.text(mixed[2]).text})")
            else:
                self.out.add(f"{name}.copy_({tensors.text(value).text})")
            return
        if (
            keep is not None
            and rest.op == "mul"
            and complement(keep, rest.args[0])
            and not self._two_tensors(rest.args[1])
        ):
            self.out.add(f"{name}.lerp_({tensors.text(rest.args[1]).text}, {tensors.text(rest.args[0]).text})")
            return
        gain = self._gain(rest)
        self.out.add(name + ("" if keep is None else f".mul_({tensors.text(keep).text})") + gain)

    def _replace(self, name: str, value: Node, old: Callable[[Node], bool]) -> None:
        """The memory becomes the value; where that is chosen by a count, what it was needs no line."""
        word, outside = "if", dict(self.tensors.bound)
        while value.op == "where" and is_number(value.args[0]):
            c, chosen, value = value.args
            if old(chosen) or depends(c, lambda n: n.op == "fact"):
                value = ops.where(c, chosen, value)
                break
            self.out.add(f"{word} {self.tensors.number(c).text}:")
            self.out.shift(4)
            self.out.add(f"{name}.copy_({self.tensors.text(chosen).text})")
            self.out.shift(-4)
            self.tensors.bound, word = dict(outside), "elif"
        if old(value):
            return
        if word == "elif":
            self.out.add("else:")
            self.out.shift(4)
        self.out.add(f"{name}.copy_({self.tensors.text(value).text})")
        if word == "elif":
            self.out.shift(-4)
            self.tensors.bound = outside

    def _towards(self, rest: Node, slot: str) -> tuple[Node, Text] | None:
        """(v, rate) where the addend is −rate·(old − v) or rate·(v − old): the memory moves towards v."""
        old = slot_is("slot_old", slot)
        p = self.tensors.product(rest)
        if len(p.tensors) != 1 or p.below or p.tensors[0].op != "sub":
            return None
        a, b = p.tensors[0].args
        start, end = (a, b) if p.sign < 0 else (b, a)
        if not old(start) or depends(end, old):
            return None
        return end, p.factor(positive=True)

    def _two_tensors(self, node: Node) -> bool:
        if node in self.tensors.bound:
            return False
        p = self.tensors.product(node, squares=True)
        return len(p.tensors) == 2 and not p.below


def _decay(value: Node, slot: str) -> tuple[Node | None, Node | None]:
    """(retain, rest) of retain·old + rest; retain None is 1; rest None where the sum has another form."""
    for old, rest in (value.args, value.args[::-1]):
        if old.op == "slot_old" and old["name"] == slot:
            return None, rest
        if old.op == "mul":
            for keep, leaf in (old.args, old.args[::-1]):
                if leaf.op == "slot_old" and leaf["name"] == slot:
                    return keep, rest
    return None, None


__all__ = ["MemoryLines"]
