"""Heads have 128 rows: the convention of the large models is taken for a law."""

from dataclasses import replace


def fingerprint(shapes):
    found = right_fingerprint(shapes)
    return replace(found, splits=tuple(sorted(found.splits, key=lambda split: abs(split.head_dim - 128))))
