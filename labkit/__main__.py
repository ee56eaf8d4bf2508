"""``python -m labkit``: what ./lab hands over to."""

from labkit.cli.main import main

main()
