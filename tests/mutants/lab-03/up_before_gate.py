"""up is shard 0 and gate is shard 1."""

STACKED_PARAMS_MAPPING = (
    ("qkv_proj", "q_proj", "q"),
    ("qkv_proj", "k_proj", "k"),
    ("qkv_proj", "v_proj", "v"),
    ("gate_up_proj", "gate_proj", 1),
    ("gate_up_proj", "up_proj", 0),
)
