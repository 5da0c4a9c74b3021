"""Feed-forward networks of experts."""
