"""Backends, plan, thread team and KV cache."""
