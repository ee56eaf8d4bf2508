"""Only the likeliest split is listed."""

from dataclasses import replace


def fingerprint(shapes):
    found = right_fingerprint(shapes)
    return replace(found, splits=found.splits[:1])
