"""Eviction policies: each gives tokens a score, and the lowest are evicted."""
