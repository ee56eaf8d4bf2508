"""Shapes tell everything: there is nothing that they cannot."""

from dataclasses import replace


def fingerprint(shapes):
    return replace(right_fingerprint(shapes), unknown=())
