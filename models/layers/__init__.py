"""Layer kinds: each file describes one mixer or feed-forward network and its operations."""
