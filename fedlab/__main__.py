"""``python -m fedlab``: the same as the command ``fedlab``."""

from fedlab.cli.app import main

main()
