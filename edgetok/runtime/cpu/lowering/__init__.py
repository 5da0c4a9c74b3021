"""CPU instructions of each kind of operation."""
