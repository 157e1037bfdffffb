"""All benchmarks: python -m benchmarks.run [--quick] (see titans_memory.py for the other options)."""

from __future__ import annotations

import sys

from benchmarks.titans_memory import main

if __name__ == "__main__":
    sys.exit(main())
