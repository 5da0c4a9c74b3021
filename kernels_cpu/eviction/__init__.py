"""Which tokens a bounded cache gives up, and how the rest is renumbered."""
