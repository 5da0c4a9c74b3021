"""Bits per tensor: measured sensitivity, and the choice that fits a size or a loss."""
