"""The commands, one a file, with parts of the longer ones beside them."""
