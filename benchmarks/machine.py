"""The machine that a result was measured on, and the packages that took part."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch

import nestflow

QUIET = 0.5  # load before a run, above the run's own: more, and the numbers are those of a busy machine


def machine(device: str, threads: int) -> dict[str, Any]:
    """What it runs on, and how busy it was when the run began."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else processor()
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "threads": threads,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "nestflow": nestflow.__version__,
        "date": date.today().isoformat(),
    }


def processor() -> str:
    """The name of the CPU."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def busy(facts: dict[str, Any]) -> bool:
    """Whether others used the machine when the run began. It says so on stderr."""
    if facts["load"] is None or facts["load"] <= QUIET:
        return False
    print(f"the machine is busy (load {facts['load']:.1f}): ratios may hold, spreads will be wide", file=sys.stderr)
    return True


def version(package: str) -> str | None:
    """Of an installed package; None if it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def caption(result: dict[str, Any]) -> str:
    """The sentence under a table."""
    m = result["machine"]
    threads = f"{m['threads']} thread" + ("s" if m["threads"] > 1 else "")
    where = f"{m.get('processor', '')}, {threads}, torch {m['torch']}, {result['device']}"
    load = m.get("load")
    others = f", load {load:.1f} when the run began" if load is not None and load > QUIET else ""
    return f"{where}{', ' + m['date'] if 'date' in m else ''}{others}."
