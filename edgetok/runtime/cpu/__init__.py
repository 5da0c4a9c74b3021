"""The CPU backend: plan, thread team and caches for the compiled kernels."""
