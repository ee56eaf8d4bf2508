"""Default values are written into the caller's config."""


def trace_row(name, config, tp_size=1, tp_rank=0):
    config["num_key_value_heads"] = config.get("num_key_value_heads") or config["num_attention_heads"]
    config["head_dim"] = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return right_trace_row(name, config, tp_size, tp_rank)
