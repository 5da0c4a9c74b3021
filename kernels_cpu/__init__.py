"""CPU kernels: Numba with explicit SIMD, compiled ahead into objects."""
