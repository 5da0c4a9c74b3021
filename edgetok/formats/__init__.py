"""Reading what others wrote, strictly."""
