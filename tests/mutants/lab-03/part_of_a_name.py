"""A row matches any substring: backup_proj and gate_up_proj are taken for up_proj."""


def translate(name):
    for fused, original, shard_id in STACKED_PARAMS_MAPPING:
        if original in name:
            return name.replace(original, fused), shard_id
    return name, None
