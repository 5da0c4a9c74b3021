"""The runtime as a C library without Python: its sources, and what `edgetok export` writes."""
