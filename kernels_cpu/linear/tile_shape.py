"""The shape of a tile of products, in registers and in scratch."""

from __future__ import annotations

from edgetok.kernels_cpu.simd.emit import LANES, MATRICES, NAME, VB

# Vectors of rows and tokens of a register tile: R * T accumulators twice (int32 of a block, float32
# of all), R weights and one activation fill the registers, and R loads + T broadcasts serve R * T
# products. With 16 registers the float sums wait in memory (measured on Zen 5, November 2026).
# The last tokens take a narrower tile that has room for them. Where MATRICES, pairs of activations
# need registers, too: with 6 tokens a dozen sums of a block would wait in memory, 34 instructions a
# token and 32 inputs, and with 4 tokens they are 29 (counted in code of LLVM 22, November 2026).
R = 2
WIDTHS = {
    "avx512": (2, 4, 6),
    "avxvnni": (2, 4),
    "avx2": (2, 4),
    "neon": (2, 4) if MATRICES else (2, 4, 6),
    "portable": (2,),
}[NAME]
T = WIDTHS[-1]
FLOAT_T = {"avx512": 6, "avxvnni": 4, "avx2": 4, "neon": 6, "portable": 2}[NAME]
RUN = R * LANES  # rows
ROW_BYTES = R * VB  # of scratch for one item of all rows
STEPS = 8  # of four inputs each, in one operation
