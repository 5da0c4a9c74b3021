"""Products with quantised and float weights."""
