"""Neighbouring parts with the same fault are told one by one."""


def _joined(parts, axis):
    return parts
