"""Perplexity, KL and recall."""
