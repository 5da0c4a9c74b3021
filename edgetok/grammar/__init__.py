"""Structured output: what an answer must match, held token by token by llguidance."""
