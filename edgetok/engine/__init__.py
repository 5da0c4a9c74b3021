"""The engine: sequences, and the loop that steps them."""
