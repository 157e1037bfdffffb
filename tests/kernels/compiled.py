"""`python -m tests.kernels.compiled 80 99`: every kernel to machine code of a GPU that need not be there."""

from __future__ import annotations

import itertools
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nestflow.kernels import pieces
from nestflow.ops.whole import MOST, piece_size

POINTERS = {"states_kernel": 8, "states_back_kernel": 9, "outputs_kernel": 5, "outputs_back_kernel": 9}


def compiled(name: str, constants: dict[str, Any], capability: int) -> Any:
    kernel = getattr(pieces, name)
    names = kernel.arg_names
    known = {n: v for n, v in constants.items() if n in names}
    types = {n: "constexpr" if n in known else "*fp32" if i < POINTERS[name] else "i32" for i, n in enumerate(names)}
    source = ASTSource(fn=kernel, signature=types, constexprs={(names.index(n),): v for n, v in known.items()})
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_stages": 1})


def main(capability: int, most: int) -> None:
    for n_in, looks in itertools.product((64, 256), (False, True)):
        constants = {"C": piece_size(4096, MOST, n_in), "PRECISION": "tf32x3", **pieces.blocks(n_in, 64)}
        for name in POINTERS:
            if not looks and "states" not in name:
                continue
            made = compiled(name, {**constants, "LOOKS": looks, "CHANNELS": looks}, capability)
            kib = made.metadata.shared / 1024
            assert made.asm["cubin"], name
            assert kib <= most, f"{name} with keys of {n_in} numbers asks for {kib} KiB of shared memory"
            print(f"{name} {n_in}: {kib:.0f} KiB")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
