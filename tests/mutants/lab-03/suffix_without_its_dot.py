"""A row matches the end of the module's name, without the dot before it: backup_proj ends in up_proj."""


def translate(name):
    *path, module, kind = ("", *name.split("."))
    for fused, original, shard_id in STACKED_PARAMS_MAPPING:
        if module.endswith(original):
            return ".".join((*path[1:], module.removesuffix(original) + fused, kind)), shard_id
    return name, None
