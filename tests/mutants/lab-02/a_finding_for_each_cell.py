"""Neighbouring parts with the same fault are reported separately."""


def _joined(parts, axis):
    return parts
