"""A row matches wherever its word occurs (`in`): backup_proj is taken for an up_proj, and gate_up_proj too."""


def translate(name):
    for fused, original, shard_id in STACKED_PARAMS_MAPPING:
        if original in name:
            return name.replace(original, fused), shard_id
    return name, None
