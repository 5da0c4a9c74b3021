"""Tokens of texts and texts of tokens, computed where there is no Python."""
