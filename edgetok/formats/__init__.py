"""Strict readers of files that others wrote, and the artefact's layout."""
