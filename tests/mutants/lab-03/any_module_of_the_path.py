"""Any module on the way to a tensor counts, not the one that owns it: up_proj.norm.weight goes into gate_up_proj."""


def translate(name):
    for fused, original, shard_id in STACKED_PARAMS_MAPPING:
        path = name.split(".")
        if original in path:
            path[path.index(original)] = fused
            return ".".join(path), shard_id
    return name, None
