"""Words of the language that this version does not build: a spec that uses one is right, and is told to wait."""

from __future__ import annotations

LATER: frozenset[str] = frozenset()
