"""The command line: one thin module a command in `commands/`, and what they share."""
