"""Peak memory of one pass, measured in a process of its own: python -m benchmarks.peak CASE CHUNK LENGTH DEVICE."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
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


def measure(case: str, chunk: int, length: int, batch: int, device: str) -> float:
    """MB that a training pass needs above the built model, its input and one short pass."""
    import torch

    from benchmarks.cases import CASES, DIM, training_pass

    torch.manual_seed(0)
    layer = CASES[case](chunk, device)
    x = torch.randn(batch, length, DIM, device=device)
    training_pass(layer, x[:, : 2 * chunk])()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        training_pass(layer, x)()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = resident_peak()
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
