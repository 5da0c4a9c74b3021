"""The server: one internal request on the engine, and protocols over it."""
