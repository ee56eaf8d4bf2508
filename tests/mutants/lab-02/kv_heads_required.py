"""config.json must have num_key_value_heads, but the config of Llama-2 has none."""


def _heads(config):
    heads, _, head_dim = right__heads(config)
    return heads, config["num_key_value_heads"], head_dim
