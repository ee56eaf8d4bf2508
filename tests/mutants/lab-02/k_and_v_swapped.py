"""v is put before k: shapes agree, and nothing but the place can tell."""

SHARDS = {"qkv_proj": ("q", "v", "k"), "gate_up_proj": (0, 1)}
