"""Triton kernels, same file and function names as kernels_cpu."""
