"""Generated source becomes a module: compiled under a name of its own, kept in linecache so that tracebacks show it."""

from __future__ import annotations

import hashlib
import linecache
import re
import sys
from types import ModuleType


def load_source(text: str, name: str) -> ModuleType:
    """The module of a generated text. The same text gives the same module."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    key = "nestflow_" + re.sub(r"\W", "_", name) + "_" + digest
    if key in sys.modules:
        return sys.modules[key]
    filename = f"<{key}.py>"
    module = ModuleType(key)
    module.__file__ = filename
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    sys.modules[key] = module  # torch.compile looks generated functions up by the name of their module
    try:
        exec(compile(text, filename, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[key]
        raise
    return module
