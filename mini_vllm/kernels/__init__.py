"""Faster implementations of the plain layers on a CPU; ``install`` sets them on a model (README.md)."""
