"""The likeliest way to cut the heads is the only one that is named."""

from dataclasses import replace


def fingerprint(shapes):
    found = right_fingerprint(shapes)
    return replace(found, splits=found.splits[:1])
