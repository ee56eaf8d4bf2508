"""A row matches any module of the path, not only the owner: up_proj.norm.weight becomes part of gate_up_proj."""


def translate(name):
    for fused, original, shard_id in STACKED_PARAMS_MAPPING:
        path = name.split(".")
        if original in path:
            path[path.index(original)] = fused
            return ".".join(path), shard_id
    return name, None
