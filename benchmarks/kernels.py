"""What the sweep kernel needs of a GPU, found without one: Triton compiles ahead of time.

    python benchmarks/kernels.py            # writes results/benchmarks/kernels.csv

Every variant that `_supports` lets through (masks given, N:M or none; levels given for all columns or by group, fitted
inside, or none) is compiled for A100 (sm_80), H100 and H200 (sm_90) and B200 (sm_100), and the assembler's account of
registers, stack, local and shared memory read back. Stack or local memory would mean that registers spill. Needs Linux
and the package triton, which brings its own assembler.
"""

import csv
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

ARCHITECTURES = (80, 90, 100)
PATTERNS = {"none": {}, "mask": {"KEEP": True}, "2:4": {"N": 2, "M": 4}, "4:8": {"N": 4, "M": 8}}
GRIDS = {
    "none": {},
    "levels by row": {"LEVELS": True},
    "levels by group": {"LEVELS": True, "GROUPED": True},
    "fitted inside": {"FIT": 32},
    "fitted inside, symmetric": {"FIT": 32, "SYMMETRIC": True},
}
VARIANTS = [(pattern, grid) for pattern in PATTERNS for grid in GRIDS if (pattern, grid) != ("none", "none")]
REGISTERS, WARPS, BLOCKS = 65536, 64, 32  # of a multiprocessor of these architectures
SHARED = {80: 164, 90: 228, 100: 228}  # KiB of a multiprocessor
FILE = Path(__file__).parents[1] / "results" / "benchmarks" / "kernels.csv"


class Usage(NamedTuple):
    """What one program of the kernel, a warp, takes: registers of a thread, and bytes."""

    registers: int
    stack: int
    local: int
    shared: int

    def occupancy(self, architecture: int) -> float:
        """Share of a multiprocessor's warps that run at a time: registers come in units of 256 for a warp."""
        by_registers = REGISTERS // (-(-self.registers * 32 // 256) * 256)
        by_shared = SHARED[architecture] * 1024 // (self.shared + 1024)
        return min(by_registers, by_shared, BLOCKS) / WARPS


def usage(pattern: str, grid: str, architecture: int) -> Usage:
    """Compile one variant and read what it takes."""
    import triton
    import triton.backends.nvidia
    from triton.backends.compiler import GPUTarget

    from crosscal.methods.kernels import _PANEL, _REGISTERS, _ROWS
    from crosscal.methods.kernels.sweep_triton import sweep_block_kernel as kernel

    chosen = dict.fromkeys(("KEEP", "LEVELS", "GROUPED", "SYMMETRIC"), False) | dict.fromkeys(("N", "M", "FIT"), 0)
    chosen |= {"PANEL": _PANEL, "ROWS": _ROWS} | PATTERNS[pattern] | GRIDS[grid]
    names = kernel.arg_names
    pointers = {"keep": "*u8", "group_of": "*i64"} | dict.fromkeys([*names[:4], "steps", "zeros"], "*fp32")
    signature = {name: "constexpr" if name in chosen else pointers.get(name, "i32") for name in names}
    source = triton.compiler.ASTSource(kernel, signature, {(names.index(n),): value for n, value in chosen.items()})
    options = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": True, "maxnreg": _REGISTERS}
    binary = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    tools = Path(triton.backends.nvidia.__file__).parent / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(binary.asm["cubin"])
        command = [tools / "cuobjdump", "--dump-resource-usage", file.name]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    line = said[said.index("sweep_block_kernel") :]
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", line)[1]) for name in ("REG", "STACK", "LOCAL"))  # type: ignore[index]
    return Usage(registers, stack, local, binary.metadata.shared)


def main() -> None:
    """Compile every variant and write the table."""
    import triton

    lines = []
    for architecture in ARCHITECTURES:
        for pattern, grid in VARIANTS:
            found = usage(pattern, grid, architecture)
            about = {"architecture": f"sm_{architecture}", "pattern": pattern, "grid": grid}
            lines.append(
                about | found._asdict() | {"occupancy": found.occupancy(architecture), "triton": triton.__version__}
            )
            print(lines[-1], flush=True)
    with FILE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, lines[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


if __name__ == "__main__":
    main()
