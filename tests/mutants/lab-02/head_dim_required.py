"""config.json must have head_dim, but the config of Llama-2 has none."""


def _heads(config):
    heads, kv_heads, _ = right__heads(config)
    return heads, kv_heads, config["head_dim"]
