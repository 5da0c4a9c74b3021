"""The server: one file a protocol over one internal request, on the engine."""
