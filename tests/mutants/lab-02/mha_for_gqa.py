"""k and v are as tall as q: every query head has its own."""


def _heads(config):
    heads, _, head_dim = right__heads(config)
    return heads, heads, head_dim
