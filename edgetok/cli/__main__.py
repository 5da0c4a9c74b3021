"""`python -m edgetok.cli`."""

from edgetok.cli.main import main

main()
