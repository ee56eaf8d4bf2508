"""head_dim is hidden_size / heads, whatever config.json says."""


def _heads(config):
    heads, kv_heads, _ = right__heads(config)
    return heads, kv_heads, config["hidden_size"] // heads
