"""Lists the kernels that modules register, without compiling them. Runs in a process of its own.

    python -m edgetok.kernels_cpu.program.names x86_64-linux-avx2 linear.q4 linear.embed

The instruction set comes first, because modules are imported for one.
"""

from __future__ import annotations

import importlib
import sys

from edgetok.kernels_cpu.program.abi import REGISTRY
from edgetok.kernels_cpu.simd import target as targets
from edgetok.kernels_cpu.simd.target import Target


def main() -> None:
    """Print a name a line."""
    targets.select(Target.parse(sys.argv[1]))
    wanted = {f"edgetok.kernels_cpu.{module}" for module in sys.argv[2:]}
    for module in sorted(wanted):
        importlib.import_module(module)
    for name, function in REGISTRY.items():
        if function.__module__ in wanted:
            print(name)


if __name__ == "__main__":
    main()
