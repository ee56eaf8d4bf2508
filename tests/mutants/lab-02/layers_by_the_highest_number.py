"""The number of layers is the highest index, but indices start at 0."""

from dataclasses import replace


def fingerprint(shapes):
    found = right_fingerprint(shapes)
    return replace(found, num_layers=found.num_layers - 1)
