"""k and v have as many rows as q, as in multi-head attention."""


def _heads(config):
    heads, _, head_dim = right__heads(config)
    return heads, heads, head_dim
