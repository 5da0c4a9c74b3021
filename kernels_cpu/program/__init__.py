"""Compiling, loading and running programs of kernels."""
