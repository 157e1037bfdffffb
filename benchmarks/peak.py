"""Peak memory of one pass, measured in a process of its own: python -m benchmarks.peak '[MAKER, ARGUMENTS, DEVICE]'."""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def resident_peak() -> int:
    """Bytes of this process at its highest. Linux: VmHWM (ru_maxrss starts at the parent's size there)."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(s for s in status.read_text().splitlines() if s.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def settle() -> int:
    """Give freed memory back and let the peak begin anew, where the system can: bytes in use then."""
    import ctypes
    import gc

    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM is what is resident now
    except (OSError, AttributeError):
        pass  # then the peak so far is where the pass begins
    return resident_peak()


def needed(run: Callable[[], object]) -> int:
    """Bytes that a call needs at its highest, above what stands before it (on a CPU; elsewhere 0)."""
    before = settle()
    run()
    return resident_peak() - before


def available() -> int | None:
    """Bytes that this machine could still give; None where it does not say."""
    facts = Path("/proc/meminfo")
    if not facts.exists():
        return None
    line = next(s for s in facts.read_text().splitlines() if s.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


def measure(maker: str, arguments: list[Any], device: str) -> float:
    """MB that a pass needs above what stands before it.

    maker: `module:function`; called with the arguments it gives what is run before (something short) and the pass."""
    import torch

    module, function = maker.split(":")
    torch.manual_seed(0)
    before_it, run = getattr(importlib.import_module(module), function)(*arguments)
    before_it()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    return needed(run) / 2**20


def in_a_process(maker: str, arguments: list[Any], device: str = "cpu") -> float | None:
    """The same, in a fresh process; None if that process fails (out of memory, say)."""
    job = json.dumps([maker, arguments, device])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peak", job], capture_output=True, text=True, cwd=ROOT, env=env, check=False
    )
    if done.returncode:
        print(f"peak memory of {maker} {arguments}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return float(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    print(measure(*json.loads(sys.argv[1])))
