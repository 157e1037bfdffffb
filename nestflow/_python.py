"""Python functions of the user that a spec names, `py("pkg.mod:fn")`: imported only where the user has allowed it.

A spec may come from a stranger, so reading one never runs code: `allow_python=True` or `--allow-python` is what says
that it may.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import lru_cache
from importlib import import_module
from typing import Any

from nestflow.diagnostics.core import Span, fail

GROUP = "nestflow.functions"
_allowed: ContextVar[bool] = ContextVar("nestflow_allow_python", default=False)


@contextlib.contextmanager
def allowing(flag: bool) -> Iterator[None]:
    """Specs that are read inside may run Python that they name, or may not."""
    token = _allowed.set(flag)
    try:
        yield
    finally:
        _allowed.reset(token)


def allow(flag: bool) -> None:
    """The same for the rest of the process, as a command line says it."""
    _allowed.set(flag)


def allowed() -> bool:
    """Whether specs may run Python now."""
    return _allowed.get()


def function(target: str, span: Span | None = None) -> Callable[..., Any]:
    """The function of `pkg.mod:fn`, or of an entry point's name. Raises NestflowError NF571 where there is none."""
    try:
        return _load(target)
    except (ImportError, AttributeError, ValueError, TypeError) as e:
        said = str(e).splitlines()[0] if str(e) else type(e).__name__
        message = f"`{target}` cannot be loaded: {said}"
        raise fail("NF571", message, span, f'`py("pkg.mod:fn")`, or the name of an entry point of `{GROUP}`') from e


@lru_cache(maxsize=1024)
def _load(target: str) -> Callable[..., Any]:
    module, colon, name = target.partition(":")
    found: Any
    if colon:
        if not module or not name or not all(p.isidentifier() for p in (*module.split("."), *name.split("."))):
            raise ValueError("it is not `pkg.mod:fn`")
        found = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    else:
        from importlib.metadata import entry_points  # slow to import, and seldom asked

        points = [p for p in entry_points(group=GROUP) if p.name == target]
        if not points:
            raise ValueError(f"no installed package has an entry point of that name in `{GROUP}`")
        found = points[0].load()
    if not callable(found):
        raise TypeError(f"it is a {type(found).__name__}, and no function")
    return found
