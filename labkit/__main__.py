"""``python -m labkit``: the command line that ``./lab`` runs."""

from labkit.cli.main import main

main()
