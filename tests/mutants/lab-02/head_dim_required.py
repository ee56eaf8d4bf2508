"""config.json is taken to name head_dim, which Llama-2's does not."""


def _heads(config):
    heads, kv_heads, _ = right__heads(config)
    return heads, kv_heads, config["head_dim"]
