"""Defaults for absent keys are set with conditions, not with `or`."""


def _heads(config):
    heads = config["num_attention_heads"]
    kv_heads = heads if config.get("num_key_value_heads") is None else config["num_key_value_heads"]
    head_dim = config["hidden_size"] // heads if config.get("head_dim") is None else config["head_dim"]
    return heads, kv_heads, head_dim
