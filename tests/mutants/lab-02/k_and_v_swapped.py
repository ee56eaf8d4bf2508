"""v is put before k; the shapes still fit."""

SHARDS = {"qkv_proj": ("q", "v", "k"), "gate_up_proj": (0, 1)}
