"""head_dim is computed as hidden_size / heads, even if config.json has it."""


def _heads(config):
    heads, kv_heads, _ = right__heads(config)
    return heads, kv_heads, config["hidden_size"] // heads
