"""A key that is there and null is used as it is: only a key that is absent has its default."""


def _heads(config):
    heads = config["num_attention_heads"]
    return heads, config.get("num_key_value_heads", heads), config.get("head_dim", config["hidden_size"] // heads)
