"""Session files for the C library: the conversations that `edgetok chat --session` keeps."""
