"""A key with null in config.json gets no default value; only an absent key does."""


def _heads(config):
    heads = config["num_attention_heads"]
    return heads, config.get("num_key_value_heads", heads), config.get("head_dim", config["hidden_size"] // heads)
