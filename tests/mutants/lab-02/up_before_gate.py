"""gate_up_proj is taken to hold up first."""

SHARDS = {"qkv_proj": ("q", "k", "v"), "gate_up_proj": (1, 0)}
