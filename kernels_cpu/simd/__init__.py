"""SIMD values as Numba types, one meaning for every instruction set."""
