"""Entry point of `python -m edgetok`."""

from edgetok.cli.__main__ import main

if __name__ == "__main__":
    main()
