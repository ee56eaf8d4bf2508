"""Odd head sizes are listed, but rope rotates pairs of rows."""

from dataclasses import replace


def fingerprint(shapes):
    found = right_fingerprint(shapes)
    q, kv = (shapes[f"model.layers.0.self_attn.{part}_proj.weight"][0] for part in "qk")
    odd = [HeadSplit(q // dim, kv // dim, dim) for dim in range(1, kv + 1, 2) if kv % dim == 0 and q % kv == 0]
    return replace(found, splits=found.splits + tuple(odd))
