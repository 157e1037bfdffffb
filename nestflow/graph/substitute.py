"""`for` variables are replaced where they stand as a name, and as `{p}` inside names and strings."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any, cast

from nestflow.language import tree


def text_of(expr: tree.Expr) -> str | None:
    """How an item of a `for` list is written inside a name: a name, a whole number or a string."""
    if isinstance(expr, tree.Name):
        return expr.name
    if isinstance(expr, tree.Number):
        return str(expr.value)
    if isinstance(expr, tree.String):
        return expr.value
    return None


def substitute(node: Any, variable: str, item: tree.Expr) -> Any:
    """The tree with the variable replaced by the item."""
    text = text_of(item)
    marker = "{" + variable + "}"

    def fix(name: str) -> str:
        if text is not None and marker in name:
            return name.replace(marker, text)
        return text if name == variable and text is not None and isinstance(item, tree.Name) else name

    def go(n: Any) -> Any:
        if isinstance(n, tree.Name):
            if n.name == variable:
                return item
            return replace(n, name=n.name.replace(marker, text)) if text is not None and marker in n.name else n
        if isinstance(n, tree.String):
            return replace(n, value=n.value.replace(marker, text)) if text is not None and marker in n.value else n
        if isinstance(n, tuple):
            return tuple(go(x) for x in cast("tuple[Any, ...]", n))
        if is_dataclass(n) and isinstance(n, tree.Node):
            changes: dict[str, Any] = {}
            for f in fields(n):
                if f.name in ("span", "name_span", "unit_span", "source", "doc", "comments", "trailing"):
                    continue
                old = getattr(n, f.name)
                if f.name in ("name", "target") and isinstance(old, str):
                    new: Any = (
                        fix(old) if isinstance(n, (tree.MemoryPart, tree.Template, tree.Shared, tree.Emit)) else old
                    )
                elif f.name == "names":
                    new = tuple(fix(x) for x in old)
                elif isinstance(old, (tuple, tree.Node)):
                    new = go(old)
                else:
                    continue
                if new is not old:
                    changes[f.name] = new
            return replace(n, **changes) if changes else n
        return n

    return go(node)
