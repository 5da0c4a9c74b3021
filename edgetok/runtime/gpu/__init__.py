"""The GPU backend: plan, placement and caches for the Triton kernels."""
