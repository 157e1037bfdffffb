"""Many tensors at once: an elementwise update rule runs on lists of tensors through torch's `foreach` functions.

The code that is written for one weight runs on a `Many` of weights as it stands. On a CPU every `foreach` function does
to each tensor what the method of that name does, so the numbers are the same bit for bit; what is saved is the way
through Python, once a list instead of once a tensor. On CUDA one kernel serves many tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

# what a rule may use to be run on lists: methods of a tensor that have a `foreach` twin
METHODS = frozenset(
    ["abs", "add", "add_", "addcdiv_", "addcmul_", "copy_", "div_", "exp", "lerp", "lerp_", "log", "mul", "mul_", "neg"]
    + ["sign", "sigmoid", "sqrt", "square", "sub", "sub_", "tanh", "zero_"]
)
_LISTS: Any = torch  # whose `foreach` functions have names of their own
SMALL = {"cpu": (2**14, 2**18)}  # the largest tensor, and the most elements in a list: a CPU keeps them in its cache
LARGE = (2**24, 2**26)


class Many:
    """A list of tensors that has a tensor's arithmetic, elementwise."""

    __slots__ = ("tensors",)

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)

    def __mul__(self, other: Any) -> Many:
        return Many(_LISTS._foreach_mul(self.tensors, _bare(other)))

    mul = __rmul__ = __mul__

    def __add__(self, other: Any) -> Many:
        return Many(_LISTS._foreach_add(self.tensors, _bare(other)))

    __radd__ = __add__

    def __sub__(self, other: Any) -> Many:
        return Many(_LISTS._foreach_sub(self.tensors, _bare(other)))

    def __rsub__(self, other: Any) -> Many:
        return Many([other - x for x in self.tensors])

    def __truediv__(self, other: Any) -> Many:
        return Many(_LISTS._foreach_div(self.tensors, _bare(other)))

    def __rtruediv__(self, other: Any) -> Many:
        return Many([other / x for x in self.tensors])

    def __pow__(self, other: Any) -> Many:
        return Many([x**y for x, y in zip(self.tensors, _each(other, self))])

    def __rpow__(self, other: Any) -> Many:
        return Many([other**x for x in self.tensors])

    def __neg__(self) -> Many:
        return Many(_LISTS._foreach_neg(self.tensors))

    def square(self) -> Many:
        return Many([x.square() for x in self.tensors])

    def add(self, other: Any, *, alpha: float = 1) -> Many:
        return Many([x.add(y, alpha=alpha) for x, y in zip(self.tensors, _each(other, self))])

    def sub(self, other: Any, *, alpha: float = 1) -> Many:
        return Many([x.sub(y, alpha=alpha) for x, y in zip(self.tensors, _each(other, self))])

    def lerp(self, end: Many, weight: float) -> Many:
        return Many([x.lerp(y, weight) for x, y in zip(self.tensors, end.tensors)])

    def add_(self, other: Any, *, alpha: float = 1) -> Many:
        if isinstance(other, Many):
            _LISTS._foreach_add_(self.tensors, other.tensors, alpha=alpha)
        else:
            _LISTS._foreach_add_(self.tensors, other * alpha)
        return self

    def sub_(self, other: Any, *, alpha: float = 1) -> Many:
        if isinstance(other, Many):
            _LISTS._foreach_sub_(self.tensors, other.tensors, alpha=alpha)
        else:
            _LISTS._foreach_sub_(self.tensors, other * alpha)
        return self

    def addcmul_(self, a: Many, b: Many, *, value: float = 1) -> Many:
        _LISTS._foreach_addcmul_(self.tensors, a.tensors, b.tensors, value)
        return self

    def addcdiv_(self, a: Many, b: Many, *, value: float = 1) -> Many:
        _LISTS._foreach_addcdiv_(self.tensors, a.tensors, b.tensors, value)
        return self

    def lerp_(self, end: Many, weight: float) -> Many:
        _LISTS._foreach_lerp_(self.tensors, end.tensors, weight)
        return self

    def zero_(self) -> Many:
        _LISTS._foreach_zero_(self.tensors)
        return self

    def copy_(self, other: Many) -> Many:
        _LISTS._foreach_copy_(self.tensors, other.tensors)
        return self


def _unary(name: str) -> Any:
    function = getattr(_LISTS, f"_foreach_{name}")
    return lambda self: Many(function(self.tensors))


def _in_place(name: str) -> Any:
    function = getattr(_LISTS, f"_foreach_{name}")

    def method(self: Many, other: Any) -> Many:
        function(self.tensors, _bare(other))
        return self

    return method


for _name in ("abs", "exp", "log", "neg", "sign", "sigmoid", "sqrt", "tanh"):
    setattr(Many, _name, _unary(_name))
for _name in ("mul_", "div_"):
    setattr(Many, _name, _in_place(_name))


def _bare(x: Any) -> Any:
    return x.tensors if isinstance(x, Many) else x


def _each(x: Any, like: Many) -> Sequence[Any]:
    return x.tensors if isinstance(x, Many) else [x] * len(like.tensors)


def bunches(ready: Sequence[tuple[Any, ...]]) -> Iterator[list[Any]]:
    """Updates of weights that go together: of one group, device, dtype and count, small enough to be worth it.

    ready: (w, grad, state, group, …). A weight that goes alone comes as a list of one."""
    lists: dict[Any, tuple[list[Any], int]] = {}
    for one in ready:
        w, _, state, group = one[:4]
        largest, most = SMALL.get(w.device.type, LARGE)
        if w.numel() > largest or w.dtype in (torch.float16, torch.bfloat16) or type(w.data) is not Tensor:
            yield [one]
            continue
        mark = (id(group), w.device, w.dtype, state["step"])
        bunch, size = lists.pop(mark, ([], 0))
        if size + w.numel() > most:
            yield bunch
            bunch, size = [], 0
        bunch.append(one)
        lists[mark] = (bunch, size + w.numel())
    yield from (bunch for bunch, _ in lists.values())


__all__ = ["METHODS", "Many", "bunches"]
