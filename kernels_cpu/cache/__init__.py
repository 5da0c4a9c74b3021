"""Which slots of a KV cache hold which tokens, and its state as bytes, where there is no Python."""
