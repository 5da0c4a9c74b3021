"""Memory bandwidth, measured by a read loop."""
