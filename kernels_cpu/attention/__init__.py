"""Attention, and what is stored in the KV cache."""
