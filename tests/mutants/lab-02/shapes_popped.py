"""Shapes are popped from the caller's dict when they are used."""


def fingerprint(shapes):
    found = right_fingerprint(shapes)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        shapes.pop(name, None)
    return found
