"""config.json is taken to name num_key_value_heads, which Llama-2's does not."""


def _heads(config):
    heads, _, head_dim = right__heads(config)
    return heads, config["num_key_value_heads"], head_dim
