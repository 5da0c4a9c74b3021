"""The user's models: found by name, downloaded, converted once and kept."""
