"""Which tokens a bounded KV cache keeps."""
