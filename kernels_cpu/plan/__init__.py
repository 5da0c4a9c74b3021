"""Reading a plan where there is no Python: checks, and addresses in the place of offsets."""
