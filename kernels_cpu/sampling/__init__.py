"""The next token, computed where C programs compute it, too."""
