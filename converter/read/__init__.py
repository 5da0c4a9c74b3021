"""Checkpoints: Hugging Face folders, GGUF files, packed integers."""
