"""`unknown` does not say that k and v may be swapped."""

from dataclasses import replace


def fingerprint(shapes):
    found = right_fingerprint(shapes)
    return replace(found, unknown=tuple(sentence for sentence in found.unknown if "swapped" not in sentence))
