"""The console of whatever prints: the command line, the trainer, the demo."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console(stderr: bool = False) -> Console:
    """A rich console that also serves pipes and NO_COLOR; 100 columns where nothing says how many."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if os.environ.get("COLUMNS") or stream.isatty() else 100
    return Console(stderr=stderr, highlight=False, width=width)
