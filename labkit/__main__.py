"""``python -m labkit``: what ./lab hands over to."""

from labkit.cli import main

main()
