"""Triton kernels, under the file and function names of kernels_cpu where they mean the same."""
