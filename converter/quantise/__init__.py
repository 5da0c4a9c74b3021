"""Quantisation methods, one a file."""
