"""A model is called tied when it is small."""

from dataclasses import replace


def fingerprint(shapes):
    found = right_fingerprint(shapes)
    return replace(found, tied=found.hidden_size <= 2048)
