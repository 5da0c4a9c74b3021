"""Edge inference for language models."""
