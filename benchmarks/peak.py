"""Peak memory of one pass, measured in a process of its own: python -m benchmarks.peak CASE CHUNK LENGTH DEVICE."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

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


def measure(case: str, chunk: int, length: int, batch: int, device: str) -> float:
    """MB that a training pass needs above the built model, its input and one short pass (code that is compiled for
    its shapes: one whole pass, after which freed memory is given back)."""
    import torch

    from benchmarks.cases import CASES, DIM, WARM, training_pass

    torch.manual_seed(0)
    layer = CASES[case](chunk, device)
    x = torch.randn(batch, length, DIM, device=device)
    training_pass(layer, x if case in WARM else x[:, : 2 * chunk])()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        training_pass(layer, x)()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = settle()
    training_pass(layer, x)()
    return (resident_peak() - before) / 2**20


def in_a_process(case: str, chunk: int, length: int, batch: int, device: str) -> float | None:
    """The same, in a fresh process; None if that process fails (out of memory, say)."""
    job = json.dumps([case, chunk, length, batch, device])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peak", job], capture_output=True, text=True, cwd=ROOT, env=env, check=False
    )
    if done.returncode:
        print(f"peak memory of {case}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return float(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    print(measure(*json.loads(sys.argv[1])))
