"""gate_up_proj has up first."""

SHARDS = {"qkv_proj": ("q", "k", "v"), "gate_up_proj": (1, 0)}
