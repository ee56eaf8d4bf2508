"""Heads always have 128 rows, as in most large models."""

from dataclasses import replace


def fingerprint(shapes):
    found = right_fingerprint(shapes)
    return replace(found, splits=tuple(sorted(found.splits, key=lambda split: abs(split.head_dim - 128))))
