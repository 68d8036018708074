"""`python -m dlops`: the command."""

from dlops.cli import main

main()
