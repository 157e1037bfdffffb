"""One column of data as one input: numbers of the right type, in the right shape, inside the bounds, all finite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nestflow.diagnostics.core import NestflowError, fail
from nestflow.graph.model import InputSpec
from nestflow.train.readers import Columns

DTYPES = {"float": torch.float32, "int": torch.int64, "bool": torch.bool}
_TRUTHS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths: a tensor [ticks, *features] each."""

    rows: list[Tensor]

    def padded(self, length: int) -> Tensor:
        """[rows, length, *features], zeros behind the end of a row."""
        first = self.rows[0]
        full = first.new_zeros(len(self.rows), length, *first.shape[1:])
        for i, r in enumerate(self.rows):
            full[i, : len(r)] = r
        return full


LARGEST = torch.finfo(torch.float32).max  # what a number may be, whatever the type of the weights


def converted(spec: InputSpec, column: Any, columns: Columns, as_ticks: bool = False) -> Tensor | Ragged:
    """The column as a tensor [rows, (T,) *features] of the input's type, or rows of different lengths.

    as_ticks: the column's rows are the ticks of one sequence. Raises NF532 (type, shape) and NF534 (a value), each
    with the column, the row and the value.
    """
    inner = 1 if spec.type.clock and not as_ticks else 0
    if isinstance(column, Tensor) or hasattr(column, "__array__"):
        x = _typed(spec, torch.as_tensor(column).detach().cpu(), columns)
        _fits(spec, tuple(x.shape[1:]), inner, columns, None)
        found: Tensor | Ragged = x
    else:
        found = _listed(spec, list(column), inner, columns)
    _allowed(spec, found, columns)
    if as_ticks:
        assert isinstance(found, Tensor)
        return found.unsqueeze(0)
    return found


def _wanted(spec: InputSpec, inner: int) -> str:
    return f"[{', '.join(['rows', *(['T'] if inner else []), *map(str, spec.type.shape)])}]"


def _fits(spec: InputSpec, shape: tuple[int, ...], inner: int, columns: Columns, row: int | None) -> None:
    """A row's shape is the input's, behind the token axis if it has one."""
    want = spec.type.shape
    if len(shape) == inner + len(want) and shape[inner:] == want:
        return
    at = "each row" if row is None else columns.place(row)
    given = "a number" if not shape else f"of shape {list(shape)}"
    help_ = None
    if math.prod(shape[inner:]) == math.prod(want) and len(shape) >= inner:
        help_ = f"the numbers are as many: reshape the column to {_wanted(spec, inner)}"
    raise fail(
        "NF532",
        f"the column `{spec.name}` of `{columns.name}` has the shape {_wanted(spec, inner)}, and {at} of it is {given}",
        spec.span,
        help_,
    )


def _typed(spec: InputSpec, x: Tensor, columns: Columns) -> Tensor:
    """A tensor of the input's type where nothing is lost: whole numbers are floats too, 0 and 1 are truths."""
    want = spec.type.dtype
    if not x.ndim:
        raise fail("NF532", f"the column `{spec.name}` of `{columns.name}` is one number, and has no rows", spec.span)
    kind = "float" if x.is_floating_point() else "bool" if x.dtype == torch.bool else "int"
    if x.is_complex() or (want == "int" and kind == "float") or (want == "bool" and kind == "float"):
        raise fail(
            "NF532",
            f"the input `{spec.name}` is {want}, and its column in `{columns.name}` is "
            f"{str(x.dtype).removeprefix('torch.')}",
            spec.span,
            f"`float` in the spec, or convert the column to {'whole numbers' if want == 'int' else 'truth values'}",
        )
    if want == "bool" and kind == "int" and x.numel() and not bool(((x == 0) | (x == 1)).all()):
        at = ((x != 0) & (x != 1)).nonzero()[0].tolist()
        raise _bad(spec, columns, at, x[tuple(at)].item(), "a truth value is 0 or 1")
    if want == "float":
        return x if x.dtype == torch.float64 else x.to(torch.float32)
    return x.to(DTYPES[want])


def _listed(spec: InputSpec, column: list[Any], inner: int, columns: Columns) -> Tensor | Ragged:
    """Rows of a file of lines."""
    rows: list[Tensor] = []
    for i, value in enumerate(column):
        if value is None:
            raise fail("NF534", f"{columns.place(i)} of `{columns.name}` has no `{spec.name}`", spec.span)
        if isinstance(value, list) and spec.type.shape == () and not inner:
            _fits(spec, _shape(value), inner, columns, i)
        if columns.ticks and not isinstance(value, list) and spec.type.shape == (1,):
            value = [value]
        try:
            numbers = _numbers(spec, value, columns, i)
            x = torch.tensor(numbers, dtype=torch.float64 if spec.type.dtype == "float" else DTYPES[spec.type.dtype])
        except NestflowError:
            raise
        except (ValueError, TypeError, OverflowError, RuntimeError) as e:
            said = "lists inside it differ in length" if isinstance(value, list) else f"{value!r} is no number"
            raise fail("NF532", f"{columns.place(i)}, column `{spec.name}`: {said}", spec.span) from e
        if inner and x.shape == (0,):
            x = x.reshape(0, *spec.type.shape)
        _fits(spec, tuple(x.shape), inner, columns, i)
        rows.append(x)
    if spec.type.dtype == "float" and all(_in_float32(r) for r in rows):
        rows = [r.to(torch.float32) for r in rows]
    if not rows:
        return torch.zeros((0, *([1] if inner else []), *spec.type.shape), dtype=DTYPES[spec.type.dtype])
    even = all(r.shape == rows[0].shape for r in rows)
    return torch.stack(rows) if even else Ragged(rows)


def _in_float32(x: Tensor) -> bool:
    """Whether float32 holds the numbers as far as a table of text means them."""
    return bool((x.abs() < 3e38).all())


def _shape(value: Any) -> tuple[int, ...]:
    shape: list[int] = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return tuple(shape)


def _numbers(spec: InputSpec, value: Any, columns: Columns, row: int) -> Any:
    """Texts as numbers; numbers of the input's type and no others."""
    if isinstance(value, list):
        return [_numbers(spec, v, columns, row) for v in value]
    want = spec.type.dtype
    if isinstance(value, str):
        text = value.strip()
        try:
            if want == "bool":
                return _TRUTHS[text.lower()]
            return _whole(text) if want == "int" else float(text)
        except (ValueError, KeyError):
            said = "is empty" if not text else f"is {value[:40]!r}"
            kind = {"int": "a whole number", "float": "a number", "bool": "true or false"}[want]
            message = f"{columns.place(row)}, column `{spec.name}` of `{columns.name}` {said}, and {kind} is wanted"
            raise fail("NF534", message, spec.span) from None
    if want == "bool" and not isinstance(value, bool) and value in (0, 1):
        return bool(value)
    right = isinstance(value, bool) == (want == "bool") and isinstance(value, (int, float))
    if not right or (want == "int" and value != int(value)):
        kind = {"int": "a whole number", "float": "a number", "bool": "true or false"}[want]
        message = (
            f"{columns.place(row)}, column `{spec.name}` of `{columns.name}` is {str(value)[:40]}, and {kind} is wanted"
        )
        raise fail("NF534", message, spec.span)
    return int(value) if want == "int" else value


def _whole(text: str) -> int:
    """`3`, and `3.0` as tables write a class beside numbers; ValueError for all else."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer() or abs(number) > 2**53:  # above it a float has no units place
            raise
        return int(number)


def _allowed(spec: InputSpec, x: Tensor | Ragged, columns: Columns) -> None:
    """Every number is finite and inside the bounds of the input."""
    if isinstance(x, Ragged):
        for i, r in enumerate(x.rows):
            _allowed_in(spec, r, columns, [i])
    else:
        _allowed_in(spec, x, columns, [])


def _allowed_in(spec: InputSpec, x: Tensor, columns: Columns, before: list[int]) -> None:
    if not x.numel():
        return
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        at = (~torch.isfinite(x)).nonzero()[0].tolist()
        raise _bad(spec, columns, before + at, x[tuple(at)].item(), "numbers are finite; leave such rows out")
    if x.is_floating_point() and bool((large := x.abs() > LARGEST).any()):
        at = large.nonzero()[0].tolist()
        raise _bad(spec, columns, before + at, x[tuple(at)].item(), f"float32 holds numbers up to {LARGEST:.1e}")
    for bad, limit in ((x < spec.low if spec.low is not None else None, spec.low),
                       (x > spec.high if spec.high is not None else None, spec.high)):  # fmt: skip
        if bad is not None and bool(bad.any()):
            at = bad.nonzero()[0].tolist()
            side = "least" if limit is spec.low else "most"
            raise _bad(spec, columns, before + at, x[tuple(at)].item(), f"`{spec.name}` is at {side} {limit:g}")


def _bad(spec: InputSpec, columns: Columns, at: list[int], value: Any, why: str) -> NestflowError:
    """A value that cannot be, with its place."""
    inside = f", element {at[1:]}" if len(at) > 1 else ""
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    message = f"{columns.place(at[0])}, column `{spec.name}` of `{columns.name}`{inside} is {shown}"
    return fail("NF534", message, spec.span, why)
