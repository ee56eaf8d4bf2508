"""gate and up change places: up is put first, as shard 0."""

STACKED_PARAMS_MAPPING = (
    ("qkv_proj", "q_proj", "q"),
    ("qkv_proj", "k_proj", "k"),
    ("qkv_proj", "v_proj", "v"),
    ("gate_up_proj", "gate_proj", 1),
    ("gate_up_proj", "up_proj", 0),
)
