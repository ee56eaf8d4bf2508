"""A model with a small hidden size is reported as tied."""

from dataclasses import replace


def fingerprint(shapes):
    found = right_fingerprint(shapes)
    return replace(found, tied=found.hidden_size <= 2048)
